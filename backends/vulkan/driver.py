"""Executor of kernels on Vulkan: launches are recorded into one command buffer and submitted many times."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import vulkan as vk

from mnnpy.backends.base import DeviceInfo
from mnnpy.backends.kernels.driver import Binding, Caps, Launch
from mnnpy.backends.kernels.executor import Executor
from mnnpy.backends.kernels.hazards import Hazards
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.backends.kernels.render_glsl import GlslRenderer
from mnnpy.backends.vulkan.instance import find
from mnnpy.backends.vulkan.pipelines import PipelineCache
from mnnpy.backends.vulkan.spirv import assemble
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["VulkanDriver"]

_NUMPY: dict[DType, Callable[[Any], Any]] = {DType.I32: np.int32, DType.U32: np.uint32, DType.F32: np.float32}
_FOREVER = 2**63 - 1
_STAGE = 32 << 20  #: bytes copied at a time through staging memory
_VISIBLE = vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | vk.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
_DISPATCH_BASE = 0x10  # VK_PIPELINE_CREATE_DISPATCH_BASE_BIT, which the bindings do not name
#: Core in 1.2; devices are opened as 1.1.
_EIGHT, _HALF, _FLOATS = "VK_KHR_8bit_storage", "VK_KHR_shader_float16_int8", "VK_KHR_shader_float_controls"
#: The last one must be enabled where a device has it.
_EXTENSIONS = (_EIGHT, _HALF, _FLOATS, "VK_KHR_portability_subset")
_USES = (
    vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | vk.VK_BUFFER_USAGE_TRANSFER_SRC_BIT | vk.VK_BUFFER_USAGE_TRANSFER_DST_BIT
)


@dataclass(eq=False, slots=True)
class _Memory:
    """A buffer with its memory, mapped where the host may use it directly."""

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
    submission: tuple[Any, Any]
    launches: Sequence[Launch]
    groups: Sequence[Any]  #: descriptor sets, one a launch


class VulkanDriver(Executor):
    """``Driver`` on one Vulkan device and one queue."""

    backend = "vulkan"

    def __init__(self, info: DeviceInfo) -> None:
        self._physical = find(info)
        super().__init__(self._physical.name, (vk.VkError, vk.VkException))
        self._properties = vk.vkGetPhysicalDeviceProperties(self._physical.handle)  # owns what `limits` points into
        self._limits = self._properties.limits
        self._kinds = vk.vkGetPhysicalDeviceMemoryProperties(self._physical.handle)
        features, names, chain, keep = _wanted_features(self._physical.handle, self._physical.extensions)
        queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=self._physical.family, pQueuePriorities=[1.0])
        create = vk.VkDeviceCreateInfo(
            pNext=chain, pQueueCreateInfos=[queue], ppEnabledExtensionNames=names, pEnabledFeatures=None
        )
        self._device: Any = None
        self._busy = False
        self._staging: _Memory | None = None
        self._pools: set[Any] = set()  #: of descriptors, one a recording
        self._objects: list[tuple[Callable[..., Any], Any]] = []  #: destroyers and what they destroy, oldest first
        self._device = self._try("opening the device", lambda: vk.vkCreateDevice(self._physical.handle, create, None))
        del keep
        self._queue = vk.vkGetDeviceQueue(self._device, self._physical.family, 0)
        flags = vk.VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT
        pool = vk.VkCommandPoolCreateInfo(flags=flags, queueFamilyIndex=self._physical.family)
        self._commands = self._made("CommandPool", vk.vkCreateCommandPool(self._device, pool, None))
        self._fence = self._made("Fence", vk.vkCreateFence(self._device, vk.VkFenceCreateInfo(), None))
        self._fences = vk.ffi.new("VkFence[]", [self._fence])
        self._pipelines: dict[str, _Pipeline] = {}
        self._disk = PipelineCache(self._device, self._properties)
        self._made("PipelineCache", self._disk.handle)
        self._unified = self._physical.facts["type"] != vk.VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
        self.caps = _caps(self._limits, features, self._physical.facts, self._unified)

    def _made(self, kind: str, handle: Any) -> Any:
        """Remember to destroy *handle* with the device."""
        self._objects.append((getattr(vk, f"vkDestroy{kind}"), handle))
        return handle

    # -- memory --

    def _allocate(self, size: int) -> _Memory:
        """Device memory, mapped where host and device share it.

        On a card transfers go through staging memory: what the host sees of a card is slow to read, and often small.
        """
        local = vk.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
        cached = vk.VK_MEMORY_PROPERTY_HOST_CACHED_BIT  # else downloads read past the processor's caches
        return self._new(size, _VISIBLE | local | cached if self._unified else local, _VISIBLE if self._unified else 0)

    def _new(self, size: int, prefer: int, need: int) -> _Memory:
        """A buffer in memory with flags *need* and as many of *prefer* as there are; raises VkError."""
        create = vk.VkBufferCreateInfo(size=size, usage=_USES, sharingMode=vk.VK_SHARING_MODE_EXCLUSIVE)
        buffer = vk.vkCreateBuffer(self._device, create, None)
        memory = None
        try:
            needs = vk.vkGetBufferMemoryRequirements(self._device, buffer)
            flags = {k: self._kinds.memoryTypes[k].propertyFlags for k in range(self._kinds.memoryTypeCount)}
            usable = [k for k, f in flags.items() if needs.memoryTypeBits >> k & 1 and f & need == need]
            ranked = sorted(usable, key=lambda k: -(flags[k] & prefer).bit_count())
            problem: Exception = vk.VkErrorOutOfDeviceMemory("no memory of the kind that is needed")
            for kind in ranked:
                allocation = vk.VkMemoryAllocateInfo(allocationSize=needs.size, memoryTypeIndex=kind)
                try:
                    memory = vk.vkAllocateMemory(self._device, allocation, None)
                    break
                except vk.VkErrorOutOfDeviceMemory as error:  # another heap may have room
                    problem = error
            if memory is None:
                raise problem
            vk.vkBindBufferMemory(self._device, buffer, memory, 0)
            mapped = vk.vkMapMemory(self._device, memory, 0, size, 0) if need & _VISIBLE else None
        except BaseException:
            vk.vkDestroyBuffer(self._device, buffer, None)
            if memory is not None:
                vk.vkFreeMemory(self._device, memory, None)
            raise
        return _Memory(buffer, memory, size, mapped)

    def _free(self, memory: _Memory) -> None:
        try:
            self._settle()
        finally:
            vk.vkDestroyBuffer(self._device, memory.buffer, None)
            vk.vkFreeMemory(self._device, memory.memory, None)

    def upload(self, target: Binding, array: Array) -> None:
        self.synchronize()
        data = array.reshape(-1).view(np.uint8)
        if target.memory.mapped is not None:
            target.memory.mapped[target.offset : target.offset + array.nbytes] = data.data
            return
        for at in range(0, data.size, _STAGE):
            part = data[at : at + _STAGE]
            staging = self._stage(part.size)
            staging.mapped[0 : part.size] = part.data
            self._copy(staging, 0, target.memory, target.offset + at, part.size)

    def download(self, source: Binding, array: Array) -> None:
        self.synchronize()
        data = array.reshape(-1).view(np.uint8)
        if source.memory.mapped is not None:
            data[:] = np.frombuffer(source.memory.mapped, np.uint8, array.nbytes, source.offset)
            return
        for at in range(0, data.size, _STAGE):
            part = data[at : at + _STAGE]
            staging = self._stage(part.size)
            self._copy(source.memory, source.offset + at, staging, 0, part.size)
            part[:] = np.frombuffer(staging.mapped, np.uint8, part.size)

    def copy(self, source: Binding, target: Binding) -> None:
        self.synchronize()
        self._copy(source.memory, source.offset, target.memory, target.offset, min(source.size, target.size))

    def _stage(self, size: int) -> _Memory:
        """Memory that the host reads fast, grown as needed."""
        if self._staging is None or self._staging.size < size:
            old, self._staging = self._staging, None
            if old is not None:
                self._free(old)
            prefer = _VISIBLE | vk.VK_MEMORY_PROPERTY_HOST_CACHED_BIT
            self._staging = self._try("staging", lambda: self._new(max(size, 1 << 20), prefer, _VISIBLE))
        return self._staging

    def _copy(self, source: _Memory, at: int, target: _Memory, to: int, size: int) -> None:
        def copy(command: Any) -> None:
            vk.vkCmdCopyBuffer(command, source.buffer, target.buffer, 1, [vk.VkBufferCopy(at, to, size)])

        self._try("copying", lambda: self._once(copy))

    def _once(self, fill: Callable[[Any], None]) -> None:
        """A command buffer that is filled, run and freed."""
        command = self._begin()
        try:
            fill(command)
            self._end(command)
            self._submit(_submission(command))
            self.synchronize()
        finally:
            vk.vkFreeCommandBuffers(self._device, self._commands, 1, [command])

    # -- kernels --

    def compile(self, kernels: Sequence[Kernel]) -> list[_Pipeline]:
        self.check()
        sources = [GlslRenderer(k, special="special" in self.caps.features).source() for k in kernels]
        wanted = {s: k for s, k in zip(sources, kernels, strict=True) if s not in self._pipelines}
        for source, words in assemble(list(wanted)).items():
            kernel = wanted[source]
            made = self._try(f"building kernel '{kernel.name}'", partial(self._pipeline, kernel, words))
            self._pipelines[source] = made
        if wanted:
            self._disk.save()
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
        sets_info = vk.VkDescriptorSetLayoutCreateInfo(pBindings=bindings)
        sets = self._made("DescriptorSetLayout", vk.vkCreateDescriptorSetLayout(device, sets_info, None))
        size = 4 * len(kernel.scalars)
        ranges = [vk.VkPushConstantRange(vk.VK_SHADER_STAGE_COMPUTE_BIT, 0, size)] if size else None
        layout_info = vk.VkPipelineLayoutCreateInfo(pSetLayouts=[sets], pPushConstantRanges=ranges)
        layout = self._made("PipelineLayout", vk.vkCreatePipelineLayout(device, layout_info, None))
        module = vk.vkCreateShaderModule(device, vk.VkShaderModuleCreateInfo(codeSize=len(words), pCode=words), None)
        try:
            stage = vk.VkPipelineShaderStageCreateInfo(
                stage=vk.VK_SHADER_STAGE_COMPUTE_BIT, module=module, pName="main"
            )
            info = vk.VkComputePipelineCreateInfo(flags=_DISPATCH_BASE, stage=stage, layout=layout)
            made = vk.vkCreateComputePipelines(device, self._disk.handle, 1, [info], None)
        finally:
            vk.vkDestroyShaderModule(device, module, None)
        return _Pipeline(self._made("Pipeline", made[0]), layout, sets, kernel)

    def record(self, launches: Sequence[Launch]) -> _Recording:
        return cast("_Recording", self._try("recording", lambda: self._record(launches)))

    def _record(self, launches: Sequence[Launch]) -> _Recording:
        count = sum(len(launch.buffers) for launch in launches)
        sizes = [vk.VkDescriptorPoolSize(vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, max(count, 1))]
        info = vk.VkDescriptorPoolCreateInfo(maxSets=max(len(launches), 1), pPoolSizes=sizes)
        pool = vk.vkCreateDescriptorPool(self._device, info, None)
        command = None
        try:
            groups = [self._describe(pool, launch) for launch in launches]
            command = self._begin()
            hazards = Hazards()
            for launch, group in zip(launches, groups, strict=True):
                if hazards.conflict(launch):
                    _barrier(command)
                self._dispatch(command, launch, group)
            self._end(command)
        except BaseException:
            vk.vkDestroyDescriptorPool(self._device, pool, None)
            if command is not None:
                vk.vkFreeCommandBuffers(self._device, self._commands, 1, [command])
            raise
        self._pools.add(pool)
        return _Recording(command, pool, _submission(command), tuple(launches), groups)

    def _describe(self, pool: Any, launch: Launch) -> Any:
        """A descriptor set with the launch's buffers."""
        built: _Pipeline = launch.kernel
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
        return group

    def _dispatch(self, command: Any, launch: Launch, group: Any) -> None:
        built: _Pipeline = launch.kernel
        vk.vkCmdBindPipeline(command, vk.VK_PIPELINE_BIND_POINT_COMPUTE, built.pipeline)
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

    def submit(self, recording: _Recording) -> None:
        self.synchronize()
        self._try("submitting", lambda: self._submit(recording.submission))

    def _submit(self, submission: tuple[Any, Any]) -> None:
        vk.vkResetFences(self._device, 1, self._fences)  # here: a wait that was interrupted left it signalled
        vk.vkQueueSubmit(self._queue, 1, submission[0], self._fence)
        self._busy = True

    def synchronize(self) -> None:
        if self._busy:
            self._try("waiting", self._settle)
        else:
            self.check()

    def _settle(self) -> None:
        """Wait for what runs; raises VkError."""
        if self._busy:
            vk.vkWaitForFences(self._device, 1, self._fences, True, _FOREVER)
            self._busy = False

    def time(self, recording: _Recording) -> list[float]:
        """Time stamps before and after each launch, with a barrier between launches."""
        if not self._physical.stamps:
            raise BackendError(f"backend 'vulkan': device '{self.name}' has no time stamps, so launches are not timed")
        return cast("list[float]", self._try("timing", lambda: self._time(recording)))

    def _time(self, recording: _Recording) -> list[float]:
        count = 2 * len(recording.launches)
        if not count:
            return []
        info = vk.VkQueryPoolCreateInfo(queryType=vk.VK_QUERY_TYPE_TIMESTAMP, queryCount=count)
        pool = vk.vkCreateQueryPool(self._device, info, None)

        def fill(command: Any) -> None:
            vk.vkCmdResetQueryPool(command, pool, 0, count)
            for k, (launch, group) in enumerate(zip(recording.launches, recording.groups, strict=True)):
                _barrier(command)
                vk.vkCmdWriteTimestamp(command, vk.VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, pool, 2 * k)
                self._dispatch(command, launch, group)
                vk.vkCmdWriteTimestamp(command, vk.VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, pool, 2 * k + 1)

        try:
            self.synchronize()
            self._once(fill)
            stamps = np.zeros(count, np.uint64)
            flags = vk.VK_QUERY_RESULT_64_BIT | vk.VK_QUERY_RESULT_WAIT_BIT
            into = vk.ffi.cast("void*", stamps.ctypes.data)
            vk.vkGetQueryPoolResults(self._device, pool, 0, count, stamps.nbytes, into, 8, flags)
        finally:
            vk.vkDestroyQueryPool(self._device, pool, None)
        mask = np.uint64(2**self._physical.stamps - 1)  # the counter wraps at its width
        ticks = (stamps[1::2] - stamps[0::2]) & mask
        return [1e-9 * float(self._limits.timestampPeriod) * int(t) for t in ticks]

    def _release(self, recording: _Recording) -> None:
        try:
            self._settle()
        finally:
            self._pools.discard(recording.pool)
            vk.vkFreeCommandBuffers(self._device, self._commands, 1, [recording.command])
            vk.vkDestroyDescriptorPool(self._device, recording.pool, None)

    def _shutdown(self) -> None:
        if self._device is None:
            return
        with contextlib.suppress(*self._errors):
            vk.vkDeviceWaitIdle(self._device)
        if self._staging is not None:
            self._free(self._staging)
        for pool in self._pools:
            vk.vkDestroyDescriptorPool(self._device, pool, None)
        for destroy, handle in reversed(self._objects):
            destroy(self._device, handle, None)
        vk.vkDestroyDevice(self._device, None)

    def _is_loss(self, error: Exception) -> bool:
        return isinstance(error, vk.VkErrorDeviceLost)

    def _begin(self) -> Any:
        """A new command buffer that sees what transfers and the host wrote before."""
        allocation = vk.VkCommandBufferAllocateInfo(
            commandPool=self._commands, level=vk.VK_COMMAND_BUFFER_LEVEL_PRIMARY, commandBufferCount=1
        )
        command = vk.vkAllocateCommandBuffers(self._device, allocation)[0]
        vk.vkBeginCommandBuffer(command, vk.VkCommandBufferBeginInfo())
        _barrier(command)
        return command

    def _end(self, command: Any) -> None:
        """Everything written is visible to transfers and to the host afterwards."""
        _barrier(command, vk.VK_ACCESS_HOST_READ_BIT, vk.VK_PIPELINE_STAGE_HOST_BIT)
        vk.vkEndCommandBuffer(command)


def _submission(command: Any) -> tuple[Any, Any]:
    """A submission that is made once: the array that is handed over, and what its copy points into."""
    info = vk.VkSubmitInfo(pCommandBuffers=[command])
    return vk.ffi.new("VkSubmitInfo[]", [info]), info


def _barrier(command: Any, access: int = 0, stage: int = 0) -> None:
    """What was written before is seen by what follows (and by *access* at *stage*)."""
    stages = vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | vk.VK_PIPELINE_STAGE_TRANSFER_BIT
    wrote = vk.VK_ACCESS_SHADER_WRITE_BIT | vk.VK_ACCESS_TRANSFER_WRITE_BIT
    reads = vk.VK_ACCESS_SHADER_READ_BIT | vk.VK_ACCESS_TRANSFER_READ_BIT
    memory = vk.VkMemoryBarrier(srcAccessMask=wrote, dstAccessMask=wrote | reads | access)
    vk.vkCmdPipelineBarrier(command, stages, stages | stage, 0, 1, [memory], 0, None, 0, None)


def _wanted_features(physical: Any, known: frozenset[str]) -> tuple[frozenset[str], list[str], Any, Any]:
    """Features of the device by our names, extensions and chain that ask for them, what must stay alive meanwhile."""
    wanted = [e for e in _EXTENSIONS if e in known]
    sixteen = vk.VkPhysicalDevice16BitStorageFeatures()
    eight = vk.VkPhysicalDevice8BitStorageFeatures(pNext=sixteen) if _EIGHT in known else None
    half = vk.VkPhysicalDeviceShaderFloat16Int8Features(pNext=eight or sixteen) if _HALF in known else None
    chain = vk.VkPhysicalDeviceFeatures2(pNext=half or eight or sixteen)
    vk.vkGetPhysicalDeviceFeatures2(physical, chain)
    groups = vk.VkPhysicalDeviceSubgroupProperties()
    floats = vk.VkPhysicalDeviceFloatControlsProperties(pNext=groups) if _FLOATS in known else None
    more = vk.VkPhysicalDeviceProperties2(pNext=floats or groups)
    vk.vkGetPhysicalDeviceProperties2(physical, more)
    arithmetic = bool(groups.supportedOperations & vk.VK_SUBGROUP_FEATURE_ARITHMETIC_BIT)
    has = {
        "atomics": True,
        "f64": chain.features.shaderFloat64,
        "f64_math": chain.features.shaderFloat64,  # GLSL has no such functions: glsl_double defines them
        "i64": chain.features.shaderInt64,
        "storage16": sixteen.storageBuffer16BitAccess,
        "storage8": eight is not None and eight.storageBuffer8BitAccess,
        "f16": half is not None and half.shaderFloat16,
        "special": floats is not None and floats.shaderSignedZeroInfNanPreserveFloat32,
        "subgroups": arithmetic and groups.supportedStages & vk.VK_SHADER_STAGE_COMPUTE_BIT,
    }
    chain.features.robustBufferAccess = False  # bounds checks in every access; our tests watch the bounds instead
    return frozenset(n for n, there in has.items() if there), wanted, chain, (sixteen, eight, half, chain)


def _caps(limits: Any, features: frozenset[str], facts: dict[str, Any], unified: bool) -> Caps:
    axes = limits.maxComputeWorkGroupSize
    return Caps(
        max_axes=(axes[0], axes[1], axes[2]),
        max_bindings=min(limits.maxPerStageDescriptorStorageBuffers, limits.maxPerStageResources),
        unified=unified,
        max_allocation=facts["allocation"],
        features=features,
        max_group=limits.maxComputeWorkGroupInvocations,
        local_memory=limits.maxComputeSharedMemorySize,
        max_buffer=min(limits.maxStorageBufferRange, 2**31 - 1),  # indices are 32-bit
        alignment=max(64, limits.minStorageBufferOffsetAlignment),
        lanes=1,  # GLSL has no vectors that compilers keep: items are their lanes
        cpu_like=facts["type"] == vk.VK_PHYSICAL_DEVICE_TYPE_CPU,
        units=1 if facts["type"] == vk.VK_PHYSICAL_DEVICE_TYPE_CPU else 16,  # Vulkan does not tell
        facts=facts,
    )
