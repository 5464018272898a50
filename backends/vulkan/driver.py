"""Executor of kernels on Vulkan: launches are recorded into one command buffer and submitted many times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import vulkan as vk

from mnnpy.backends.base import DeviceInfo
from mnnpy.backends.kernels.driver import Binding, Caps, Launch
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.backends.kernels.render_glsl import GlslRenderer
from mnnpy.backends.vulkan.instance import physical_devices
from mnnpy.backends.vulkan.spirv import assemble
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["VulkanDriver"]

_NUMPY: dict[DType, Callable[[Any], Any]] = {DType.I32: np.int32, DType.U32: np.uint32, DType.F32: np.float32}
_FOREVER = 2**63 - 1
_PUSH_BYTES = 128
_DISPATCH_BASE = 0x10  # VK_PIPELINE_CREATE_DISPATCH_BASE_BIT, which the bindings do not name
_USES = (
    vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | vk.VK_BUFFER_USAGE_TRANSFER_SRC_BIT | vk.VK_BUFFER_USAGE_TRANSFER_DST_BIT
)


@dataclass(eq=False, slots=True)
class _Memory:
    """A buffer with its memory, mapped where the host can see it."""

    buffer: Any
    memory: Any
    size: int
    mapped: Any = None


@dataclass(frozen=True, slots=True)
class _Pipeline:
    pipeline: Any
    layout: Any
    sets: Any  #: descriptor set layout
    kernel: Kernel


@dataclass(slots=True)
class _Recording:
    command: Any
    pool: Any  #: of descriptors
    launches: Sequence[Launch] = field(default_factory=tuple)


class VulkanDriver:
    """``Driver`` on one Vulkan device and one queue."""

    def __init__(self, info: DeviceInfo) -> None:
        self._physical = physical_devices()[info.index]
        self.name = self._physical.name
        self._properties = vk.vkGetPhysicalDeviceProperties(self._physical.handle)  # owns what `limits` points into
        self._limits = self._properties.limits
        features, chain, keep = _wanted_features(self._physical.handle)
        queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=self._physical.family, pQueuePriorities=[1.0])
        create = vk.VkDeviceCreateInfo(pNext=chain, pQueueCreateInfos=[queue], pEnabledFeatures=None)
        self._device = self._try("opening the device", lambda: vk.vkCreateDevice(self._physical.handle, create, None))
        del keep
        self._queue = vk.vkGetDeviceQueue(self._device, self._physical.family, 0)
        flags = vk.VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT
        pool = vk.VkCommandPoolCreateInfo(flags=flags, queueFamilyIndex=self._physical.family)
        self._commands = vk.vkCreateCommandPool(self._device, pool, None)
        self._fence = vk.vkCreateFence(self._device, vk.VkFenceCreateInfo(), None)
        self._pipelines: dict[str, _Pipeline] = {}
        self._allocated = 0
        self._busy = False
        self._staging: _Memory | None = None
        self.caps = _caps(self._limits, features, self._physical.facts)

    # -- memory --

    def allocate(self, size: int) -> _Memory:
        wanted = vk.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
        memory = self._new(size, wanted)
        self._allocated += size
        return memory

    def _new(self, size: int, prefer: int) -> _Memory:
        create = vk.VkBufferCreateInfo(size=size, usage=_USES, sharingMode=vk.VK_SHARING_MODE_EXCLUSIVE)
        buffer = self._try("creating a buffer", lambda: vk.vkCreateBuffer(self._device, create, None))
        needs = vk.vkGetBufferMemoryRequirements(self._device, buffer)
        visible = vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | vk.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
        kinds = vk.vkGetPhysicalDeviceMemoryProperties(self._physical.handle)
        usable = [k for k in range(kinds.memoryTypeCount) if needs.memoryTypeBits >> k & 1]
        flags = {k: kinds.memoryTypes[k].propertyFlags for k in usable}
        # Memory that both sides reach is best; else what was preferred.
        ranked = sorted(usable, key=lambda k: ((flags[k] & prefer) != prefer, (flags[k] & visible) != visible))
        allocation = vk.VkMemoryAllocateInfo(allocationSize=needs.size, memoryTypeIndex=ranked[0])
        try:
            memory = vk.vkAllocateMemory(self._device, allocation, None)
        except vk.VkError as error:
            vk.vkDestroyBuffer(self._device, buffer, None)
            raise BackendError(
                f"backend 'vulkan': {size} bytes cannot be allocated on '{self.name}' ({type(error).__name__}); "
                "use smaller inputs or close other sessions"
            ) from error
        vk.vkBindBufferMemory(self._device, buffer, memory, 0)
        mapped = None
        if flags[ranked[0]] & visible == visible:
            mapped = vk.vkMapMemory(self._device, memory, 0, size, 0)
        return _Memory(buffer, memory, size, mapped)

    def free(self, memory: _Memory) -> None:
        self.synchronize()
        self._allocated -= memory.size
        self._destroy(memory)

    def _destroy(self, memory: _Memory) -> None:
        vk.vkDestroyBuffer(self._device, memory.buffer, None)
        vk.vkFreeMemory(self._device, memory.memory, None)

    @property
    def allocated(self) -> int:
        return self._allocated

    def upload(self, target: Binding, array: Array) -> None:
        self.synchronize()
        if target.memory.mapped is not None:
            target.memory.mapped[target.offset : target.offset + array.nbytes] = array.reshape(-1).view(np.uint8).data
            return
        staging = self._stage(array.nbytes)
        staging.mapped[0 : array.nbytes] = array.reshape(-1).view(np.uint8).data
        self._copy(staging, 0, target.memory, target.offset, array.nbytes)

    def download(self, source: Binding, array: Array) -> None:
        self.synchronize()
        flat = array.reshape(-1).view(np.uint8)
        if source.memory.mapped is not None:
            flat[:] = np.frombuffer(source.memory.mapped, np.uint8, array.nbytes, source.offset)
            return
        staging = self._stage(array.nbytes)
        self._copy(source.memory, source.offset, staging, 0, array.nbytes)
        flat[:] = np.frombuffer(staging.mapped, np.uint8, array.nbytes)

    def _stage(self, size: int) -> _Memory:
        if self._staging is None or self._staging.size < size:
            if self._staging is not None:
                self._destroy(self._staging)
            self._staging = self._new(max(size, 1 << 20), vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT)
        return self._staging

    def _copy(self, source: _Memory, at: int, target: _Memory, to: int, size: int) -> None:
        command = self._begin()
        vk.vkCmdCopyBuffer(command, source.buffer, target.buffer, 1, [vk.VkBufferCopy(at, to, size)])
        vk.vkEndCommandBuffer(command)
        self._submit(command)
        self.synchronize()
        vk.vkFreeCommandBuffers(self._device, self._commands, 1, [command])

    # -- kernels --

    def compile(self, kernels: Sequence[Kernel]) -> list[_Pipeline]:
        sources = [GlslRenderer(k).source() for k in kernels]
        wanted = {s: k for s, k in zip(sources, kernels, strict=True) if s not in self._pipelines}
        for source, words in assemble(list(wanted)).items():
            self._pipelines[source] = self._pipeline(wanted[source], words)
        return [self._pipelines[s] for s in sources]

    def _pipeline(self, kernel: Kernel, words: bytes) -> _Pipeline:
        device = self._device
        bindings = [
            vk.VkDescriptorSetLayoutBinding(
                binding=k,
                descriptorType=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                descriptorCount=1,
                stageFlags=vk.VK_SHADER_STAGE_COMPUTE_BIT,
            )
            for k in range(len(kernel.buffers))
        ]
        sets = vk.vkCreateDescriptorSetLayout(device, vk.VkDescriptorSetLayoutCreateInfo(pBindings=bindings), None)
        size = 4 * len(kernel.scalars)
        if size > _PUSH_BYTES:
            raise BackendError(f"backend 'vulkan': kernel '{kernel.name}' has {size // 4} scalars, 32 can be pushed")
        ranges = [vk.VkPushConstantRange(vk.VK_SHADER_STAGE_COMPUTE_BIT, 0, size)] if size else None
        layout_info = vk.VkPipelineLayoutCreateInfo(pSetLayouts=[sets], pPushConstantRanges=ranges)
        layout = vk.vkCreatePipelineLayout(device, layout_info, None)
        module = vk.vkCreateShaderModule(device, vk.VkShaderModuleCreateInfo(codeSize=len(words), pCode=words), None)
        stage = vk.VkPipelineShaderStageCreateInfo(stage=vk.VK_SHADER_STAGE_COMPUTE_BIT, module=module, pName="main")
        info = vk.VkComputePipelineCreateInfo(flags=_DISPATCH_BASE, stage=stage, layout=layout)
        made = self._try(
            f"building kernel '{kernel.name}'",
            lambda: vk.vkCreateComputePipelines(device, vk.VK_NULL_HANDLE, 1, [info], None),
        )
        vk.vkDestroyShaderModule(device, module, None)
        return _Pipeline(made[0], layout, sets, kernel)

    def record(self, launches: Sequence[Launch]) -> _Recording:
        count = sum(len(launch.buffers) for launch in launches)
        sizes = [vk.VkDescriptorPoolSize(vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, max(count, 1))]
        info = vk.VkDescriptorPoolCreateInfo(maxSets=max(len(launches), 1), pPoolSizes=sizes)
        pool = vk.vkCreateDescriptorPool(self._device, info, None)
        command = self._begin()
        for launch in launches:
            self._dispatch(command, pool, launch)
        vk.vkEndCommandBuffer(command)
        return _Recording(command, pool, tuple(launches))

    def _dispatch(self, command: Any, pool: Any, launch: Launch) -> None:
        built: _Pipeline = launch.kernel
        vk.vkCmdBindPipeline(command, vk.VK_PIPELINE_BIND_POINT_COMPUTE, built.pipeline)
        allocation = vk.VkDescriptorSetAllocateInfo(descriptorPool=pool, pSetLayouts=[built.sets])
        group = vk.vkAllocateDescriptorSets(self._device, allocation)[0]
        writes = [
            vk.VkWriteDescriptorSet(
                dstSet=group,
                dstBinding=k,
                descriptorCount=1,
                descriptorType=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                pBufferInfo=[vk.VkDescriptorBufferInfo(b.memory.buffer, b.offset, max(4, (b.size + 3) // 4 * 4))],
            )
            for k, b in enumerate(launch.buffers)
        ]
        vk.vkUpdateDescriptorSets(self._device, len(writes), writes, 0, None)
        vk.vkCmdBindDescriptorSets(command, vk.VK_PIPELINE_BIND_POINT_COMPUTE, built.layout, 0, 1, [group], 0, None)
        if launch.scalars:
            kinds = [t for _, t in built.kernel.scalars]
            data = b"".join(_NUMPY[t](v).tobytes() for t, v in zip(kinds, launch.scalars, strict=True))
            pushed = vk.ffi.new("char[]", data)
            vk.vkCmdPushConstants(command, built.layout, vk.VK_SHADER_STAGE_COMPUTE_BIT, 0, len(data), pushed)
        most = self._limits.maxComputeWorkGroupCount
        gx, gy, gz = launch.groups
        for x in range(0, gx, most[0]):
            for y in range(0, gy, most[1]):
                for z in range(0, gz, most[2]):
                    size = (min(most[0], gx - x), min(most[1], gy - y), min(most[2], gz - z))
                    vk.vkCmdDispatchBase(command, x, y, z, *size)
        barrier = vk.VkMemoryBarrier(
            srcAccessMask=vk.VK_ACCESS_SHADER_WRITE_BIT,
            dstAccessMask=vk.VK_ACCESS_SHADER_READ_BIT | vk.VK_ACCESS_SHADER_WRITE_BIT | vk.VK_ACCESS_TRANSFER_READ_BIT,
        )
        compute = vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT
        after = compute | vk.VK_PIPELINE_STAGE_TRANSFER_BIT | vk.VK_PIPELINE_STAGE_HOST_BIT
        vk.vkCmdPipelineBarrier(command, compute, after, 0, 1, [barrier], 0, None, 0, None)

    def submit(self, recording: _Recording) -> None:
        self.synchronize()
        self._submit(recording.command)

    def _submit(self, command: Any) -> None:
        info = vk.VkSubmitInfo(pCommandBuffers=[command])
        self._try("submitting", lambda: vk.vkQueueSubmit(self._queue, 1, [info], self._fence))
        self._busy = True

    def synchronize(self) -> None:
        if not self._busy:
            return
        self._busy = False
        self._try("waiting", lambda: vk.vkWaitForFences(self._device, 1, [self._fence], True, _FOREVER))
        vk.vkResetFences(self._device, 1, [self._fence])

    def time(self, recording: _Recording) -> list[float]:
        """Each launch submitted alone: wall time with the cost of a submission."""
        found = []
        for launch in recording.launches:
            single = self.record([launch])
            self.synchronize()
            begin = time.perf_counter()
            self.submit(single)
            self.synchronize()
            found.append(time.perf_counter() - begin)
            self.release(single)
        return found

    def release(self, recording: _Recording) -> None:
        self.synchronize()
        vk.vkFreeCommandBuffers(self._device, self._commands, 1, [recording.command])
        vk.vkDestroyDescriptorPool(self._device, recording.pool, None)

    def _begin(self) -> Any:
        allocation = vk.VkCommandBufferAllocateInfo(
            commandPool=self._commands, level=vk.VK_COMMAND_BUFFER_LEVEL_PRIMARY, commandBufferCount=1
        )
        command = vk.vkAllocateCommandBuffers(self._device, allocation)[0]
        vk.vkBeginCommandBuffer(command, vk.VkCommandBufferBeginInfo())
        return command

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (vk.VkError, vk.VkException) as error:
            raise BackendError(f"backend 'vulkan' on '{self.name}', {what}: {type(error).__name__} {error}") from error


def _wanted_features(physical: Any) -> tuple[frozenset[str], Any, Any]:
    """Features of the device by our names, the chain that asks for them, and what must stay alive meanwhile."""
    sixteen = vk.VkPhysicalDevice16BitStorageFeatures()
    eight = vk.VkPhysicalDevice8BitStorageFeatures(pNext=sixteen)
    half = vk.VkPhysicalDeviceShaderFloat16Int8Features(pNext=eight)
    chain = vk.VkPhysicalDeviceFeatures2(pNext=half)
    vk.vkGetPhysicalDeviceFeatures2(physical, chain)
    names = set()
    if chain.features.shaderFloat64:
        names |= {"f64", "f64_math"}  # GLSL has no such functions: glsl_double defines them
    if chain.features.shaderInt64:
        names.add("i64")
    if sixteen.storageBuffer16BitAccess:
        names.add("storage16")
    if eight.storageBuffer8BitAccess:
        names.add("storage8")
    if half.shaderFloat16:
        names.add("f16")
    names |= {"atomics", "subgroups"}
    return frozenset(names), chain, (sixteen, eight, half, chain)


def _caps(limits: Any, features: frozenset[str], facts: dict[str, Any]) -> Caps:
    return Caps(
        features=features,
        max_group=limits.maxComputeWorkGroupInvocations,
        local_memory=limits.maxComputeSharedMemorySize,
        max_buffer=limits.maxStorageBufferRange,
        alignment=max(64, limits.minStorageBufferOffsetAlignment),
        lanes=4,
        cpu_like=facts["type"] == vk.VK_PHYSICAL_DEVICE_TYPE_CPU,
        facts=facts,
    )
