// Python bindings of the executor: mnnpy.backends.cpu._native.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "amx.h"
#include "core/core.h"

namespace py = pybind11;

namespace mnnpy {
namespace {

// ---- Python values → descriptions -----------------------------------------------------------------------------------

bool is_integer(py::handle v) { return PyBool_Check(v.ptr()) || PyIndex_Check(v.ptr()); }

int64_t to_int(py::handle v) {
  auto index = py::reinterpret_steal<py::object>(PyNumber_Index(v.ptr()));
  if (!index) throw py::error_already_set();
  int overflow = 0;
  const int64_t n = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow == 0) return n;
  return static_cast<int64_t>(PyLong_AsUnsignedLongLongMask(index.ptr()));  // u64 values keep their bits
}

std::string to_string(py::handle v) {
  if (py::isinstance<py::str>(v)) return v.cast<std::string>();
  return v.attr("value").cast<std::string>();  // DType
}

bool is_string(py::handle v) { return py::isinstance<py::str>(v) || (py::hasattr(v, "value") && py::hasattr(v, "name")); }

// Raster regions flatten to: origin, rank, size…, src_offset, src_strides…, dst_offset, dst_strides….
std::vector<int64_t> flatten_regions(const py::sequence& regions) {
  std::vector<int64_t> flat;
  auto append = [&](const py::object& list) {
    for (auto v : list) flat.push_back(to_int(v));
  };
  for (auto r : regions) {
    const py::object size = r.attr("size");
    flat.push_back(to_int(r.attr("origin")));
    flat.push_back(static_cast<int64_t>(py::len(size)));
    append(size);
    flat.push_back(to_int(r.attr("src_offset")));
    append(r.attr("src_strides"));
    flat.push_back(to_int(r.attr("dst_offset")));
    append(r.attr("dst_strides"));
  }
  return flat;
}

Attr to_attr(const std::string& key, py::handle v) {
  if (is_string(v)) return to_string(v);
  if (is_integer(v)) return to_int(v);
  if (PyNumber_Check(v.ptr()) && !py::isinstance<py::sequence>(v)) return v.cast<double>();
  if (py::isinstance<py::list>(v) || py::isinstance<py::tuple>(v)) {
    const auto list = py::reinterpret_borrow<py::sequence>(v);
    if (list.empty()) return std::vector<int64_t>{};
    if (py::hasattr(list[0], "src_strides")) return flatten_regions(list);
    bool integers = true, strings = true;
    for (auto item : list) {
      integers = integers && is_integer(item);
      strings = strings && is_string(item);
    }
    if (strings) {
      std::vector<std::string> out;
      for (auto item : list) out.push_back(to_string(item));
      return out;
    }
    if (integers) {
      std::vector<int64_t> out;
      for (auto item : list) out.push_back(to_int(item));
      return out;
    }
    std::vector<double> out;
    for (auto item : list) out.push_back(item.cast<double>());
    return out;
  }
  throw py::type_error("attribute '" + key + "' is a " + std::string(py::str(py::type::of(v))) +
                       "; kernels take numbers, strings and flat lists of them");
}

std::map<std::string, Attr> to_attrs(const py::dict& attrs) {
  std::map<std::string, Attr> out;
  for (auto [key, value] : attrs) {
    if (value.is_none()) continue;
    auto name = key.cast<std::string>();
    out.emplace(name, to_attr(name, value));
  }
  return out;
}

py::object from_attr(const Attr& a) {
  return std::visit([](const auto& v) -> py::object { return py::cast(v); }, a);
}

Dims to_dims(py::handle v) {
  Dims dims;
  for (auto d : v) dims.push_back(to_int(d));
  return dims;
}

// The bytes of a C-contiguous array.
const void* array_bytes(py::handle v, size_t wanted, const std::string& what) {
  if (!py::isinstance<py::array>(v)) throw py::type_error(what + " is not a numpy array");
  const auto a = py::reinterpret_borrow<py::array>(v);
  if (!(a.flags() & py::array::c_style)) throw py::value_error(what + " is not C-contiguous");
  if (static_cast<size_t>(a.nbytes()) != wanted)
    throw py::value_error(what + " has " + std::to_string(a.nbytes()) + " bytes, not " + std::to_string(wanted));
  return a.data();
}

TensorDesc to_desc(py::handle v) {
  TensorDesc d;
  if (v.is_none()) {
    d.present = false;
    return d;
  }
  const auto row = v.cast<py::sequence>();
  d.dtype = dtype_from_name(to_string(row[0]));
  d.shape = to_dims(row[1]);
  return d;
}

Isa to_isa(const py::object& name) {
  const Isa wanted = name.is_none() ? best_isa() : isa_from_name(name.cast<std::string>());
  if (wanted > best_isa())
    throw py::value_error(std::string("this CPU has no ") + isa_name(wanted) + "; the best it has is " + isa_name(best_isa()));
  return wanted;
}

// ---- Program --------------------------------------------------------------------------------------------------------

class Program {
 public:
  Program(const py::sequence& tensors, const py::sequence& steps, size_t arena_bytes, int threads, const py::object& isa_name) {
    std::vector<TensorSpec> specs;
    for (auto item : tensors) {
      const auto row = item.cast<py::sequence>();
      TensorSpec t;
      t.dtype = dtype_from_name(to_string(row[0]));
      t.shape = to_dims(row[1]);
      const auto kind = row[2].cast<std::string>();
      const py::object where = row[3];
      constants_.emplace_back();
      if (kind == "arena") {
        t.place.kind = Place::ARENA;
        t.place.offset = where.cast<size_t>();
        if (t.place.offset % 64 != 0) throw py::value_error("an arena offset is not a multiple of 64");
      } else if (kind == "constant" || kind == "mapped") {
        size_t bytes = dtype_size(t.dtype);
        for (int64_t d : t.shape) bytes *= static_cast<size_t>(d);
        t.place.kind = Place::CONSTANT;
        t.place.mapped = kind == "mapped";
        t.place.constant = array_bytes(where, bytes, "constant " + std::to_string(specs.size()));
        constants_.back() = where;
      } else if (kind == "input" || kind == "output") {
        t.place.kind = kind == "input" ? Place::INPUT : Place::OUTPUT;
        t.place.index = where.cast<int64_t>();
      } else if (kind == "alias") {
        const auto pair = where.cast<py::sequence>();
        t.place.kind = Place::ALIAS;
        t.place.index = pair[0].cast<int64_t>();
        t.place.offset = pair[1].cast<size_t>();
      } else {
        throw py::value_error("unknown placement '" + kind + "'");
      }
      specs.push_back(std::move(t));
    }
    std::vector<StepSpec> rows;
    for (auto item : steps) {
      const auto row = item.cast<py::sequence>();
      StepSpec s;
      s.op = row[0].cast<std::string>();
      s.name = row[1].cast<std::string>();
      s.attrs = to_attrs(row[2].cast<py::dict>());
      s.inputs = to_dims(row[3]);
      s.outputs = to_dims(row[4]);
      rows.push_back(std::move(s));
    }
    const Isa wanted = to_isa(isa_name);
    {
      py::gil_scoped_release release;
      plan_ = std::make_unique<Plan>(std::move(specs), std::move(rows), arena_bytes, threads, wanted);
    }
    const auto released = plan_->released_constants();
    for (size_t k = 0; k < released.size(); ++k)
      if (released[k]) constants_[k] = py::object();
  }

  // A direct look at the argument lists: binding machinery would cost more than a small network.
  PyObject* call(PyObject* const* args, Py_ssize_t count, std::vector<Profile>* profile) {
    if (count < 1 || count > 2) throw py::type_error("run takes the inputs and, optionally, the outputs");
    const size_t n_in = plan_->input_count(), n_out = plan_->output_count();
    PyObject* in = args[0];
    if (!PyList_Check(in) && !PyTuple_Check(in)) throw py::type_error("inputs are not a list or tuple");
    if (static_cast<size_t>(PySequence_Fast_GET_SIZE(in)) != n_in)
      throw py::value_error("got " + std::to_string(PySequence_Fast_GET_SIZE(in)) + " inputs, not " + std::to_string(n_in));
    py::object made;
    PyObject* out = count == 2 ? args[1] : Py_None;
    if (out == Py_None) {
      made = allocate_outputs();
      out = made.ptr();
    }
    if (!PyList_Check(out) && !PyTuple_Check(out)) throw py::type_error("outputs are not a list or tuple");
    if (static_cast<size_t>(PySequence_Fast_GET_SIZE(out)) != n_out)
      throw py::value_error("got " + std::to_string(PySequence_Fast_GET_SIZE(out)) + " outputs, not " + std::to_string(n_out));

    constexpr size_t kInline = 16;
    const void* in_inline[kInline];
    void* out_inline[kInline];
    std::vector<const void*> in_heap;
    std::vector<void*> out_heap;
    const void** inputs = in_inline;
    void** outputs = out_inline;
    if (n_in > kInline) inputs = (in_heap.resize(n_in), in_heap.data());
    if (n_out > kInline) outputs = (out_heap.resize(n_out), out_heap.data());
    // Callers could drop the lists' items while the GIL is released: hold on to the arrays.
    std::vector<py::object> keep;
    keep.reserve(n_in + n_out);
    for (size_t k = 0; k < n_in; ++k) {
      PyObject* item = PySequence_Fast_ITEMS(in)[k];
      inputs[k] = checked(item, plan_->input_bytes(k), "input", k, false);
      keep.push_back(py::reinterpret_borrow<py::object>(item));
    }
    for (size_t k = 0; k < n_out; ++k) {
      PyObject* item = PySequence_Fast_ITEMS(out)[k];
      outputs[k] = const_cast<void*>(checked(item, plan_->output_bytes(k), "output", k, true));
      keep.push_back(py::reinterpret_borrow<py::object>(item));
    }
    {
      py::gil_scoped_release release;
      plan_->run(inputs, outputs, profile);
    }
    return made ? made.release().ptr() : py::none().release().ptr();
  }

  py::list profile(const py::object& inputs, const py::object& outputs) {
    std::vector<Profile> rows;
    rows.reserve(plan_->step_count());
    PyObject* args[] = {inputs.ptr(), outputs.ptr()};
    Py_DECREF(call(args, 2, &rows));
    py::list out;
    for (const Profile& p : rows) out.append(py::make_tuple(p.step, p.start_ns, p.duration_ns));
    return out;
  }

  py::list describe() const {
    py::list out;
    for (size_t k = 0; k < plan_->step_count(); ++k) {
      const StepSpec& s = plan_->spec(k);
      const Kernel& kernel = plan_->kernel(k);
      py::dict row, attrs;
      for (auto& [key, value] : s.attrs) attrs[py::str(key)] = from_attr(value);
      auto types = [&](const std::vector<int64_t>& list) {
        py::list l;
        for (int64_t t : list) {
          if (t < 0) {
            l.append(py::none());
            continue;
          }
          const TensorSpec& spec = plan_->tensors()[static_cast<size_t>(t)];
          l.append(py::make_tuple(dtype_name(spec.dtype), py::tuple(py::cast(spec.shape))));
        }
        return l;
      };
      row["op"] = s.op;
      row["name"] = s.name;
      row["attrs"] = attrs;
      row["inputs"] = types(s.inputs);
      row["outputs"] = types(s.outputs);
      row["algorithm"] = kernel.algorithm();
      row["packed_bytes"] = kernel.packed_bytes();
      row["scratch_bytes"] = kernel.scratch_bytes(plan_->threads());
      out.append(row);
    }
    return out;
  }

  py::dict memory() const {
    size_t kept = 0;
    for (const py::object& c : constants_)
      if (c) kept += static_cast<size_t>(py::reinterpret_borrow<py::array>(c).nbytes());
    py::dict d;
    d["arena"] = plan_->arena_bytes();
    d["weights"] = plan_->packed_bytes() + kept;
    d["packed"] = plan_->packed_bytes();
    d["constants"] = kept;
    d["scratch"] = plan_->scratch_bytes();
    return d;
  }

  Plan& plan() const { return *plan_; }

  void set_output_types(const py::sequence& dtypes) {
    if (py::len(dtypes) != plan_->output_count()) throw py::value_error("one numpy dtype per output is needed");
    output_types_.clear();
    for (auto d : dtypes) output_types_.push_back(py::dtype::from_args(py::reinterpret_borrow<py::object>(d)));
  }

 private:
  static const void* checked(PyObject* item, size_t bytes, const char* what, size_t k, bool write) {
    auto fail = [&](const std::string& why) { return py::value_error(std::string(what) + " " + std::to_string(k) + why); };
    if (!py::isinstance<py::array>(item)) throw fail(" is not a numpy array");
    const auto* a = py::detail::array_proxy(item);
    if (!(a->flags & py::array::c_style)) throw fail(" is not C-contiguous");
    if (write && !(a->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_)) throw fail(" is read-only");
    const auto got = static_cast<size_t>(py::reinterpret_borrow<py::array>(item).nbytes());
    if (got < bytes) throw fail(" has " + std::to_string(got) + " bytes, fewer than the " + std::to_string(bytes) + " it needs");
    return a->data;
  }

  py::object allocate_outputs() {
    if (output_types_.size() != plan_->output_count())
      throw py::type_error("outputs are missing: pass them, or give output_types once");
    py::list out(output_types_.size());
    for (size_t k = 0; k < output_types_.size(); ++k) {
      const int64_t t = plan_->output_tensor(k);
      const Dims& shape = plan_->tensors()[static_cast<size_t>(t)].shape;
      PyList_SET_ITEM(out.ptr(), static_cast<Py_ssize_t>(k),
                      py::array(output_types_[k], std::vector<py::ssize_t>(shape.begin(), shape.end())).release().ptr());
    }
    return out;
  }

  std::unique_ptr<Plan> plan_;
  std::vector<py::object> constants_;
  std::vector<py::dtype> output_types_;
};

PyObject* program_run(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  try {
    return py::cast<Program&>(py::handle(self)).call(args, count, nullptr);
  } catch (py::error_already_set& e) {
    e.restore();
  } catch (const py::builtin_exception& e) {
    e.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  }
  return nullptr;
}

PyMethodDef run_method = {
    "run", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(program_run)), METH_FASTCALL,
    "run(inputs, outputs=None)\n\nRuns on lists of C-contiguous arrays. Without *outputs* new arrays are made and "
    "returned (needs set_output_types). Errors of a kernel carry the node's name."};

py::tuple supports(const std::string& op, const py::dict& attrs, const py::sequence& inputs, const py::sequence& outputs,
                   const py::object& isa_name) {
  NodeDesc node;
  node.op = op;
  node.attrs = to_attrs(attrs);
  for (auto v : inputs) node.inputs.push_back(to_desc(v));
  for (auto v : outputs) node.outputs.push_back(to_desc(v));
  const Isa wanted = to_isa(isa_name);
  std::string why;
  bool ok = false;
  try {
    ok = try_kernel(node, BuildContext{wanted, 1}, why) != nullptr;
  } catch (const std::exception& e) {
    why = e.what();
  }
  return py::make_tuple(ok, ok ? "" : why);
}

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used(), py::multiple_interpreters::per_interpreter_gil()) {
  m.doc() = "Native executor and kernels of the CPU backend.";
  m.def("isa", [] { return isa_name(best_isa()); }, "Best instruction set that CPU and build have: generic, avx2 or avx512.");
  m.def("available_isas", [] {
    py::list l;
    for (int k = 0; k <= static_cast<int>(best_isa()); ++k) l.append(isa_name(static_cast<Isa>(k)));
    return l;
  }, "Instruction sets that this CPU can run, worst first.");
  m.def("cpu_features", [](const py::object& isa) { return cpu_features(to_isa(isa)); }, py::arg("isa") = py::none(),
        "Instruction set extensions found by CPUID, up to what kernels of *isa* may use.");
  m.def("missing_amx", [] { return std::string(amx_reason()); }, "Why AMX tiles cannot be used; empty where they can.");
  m.def("emulate_amx", &emulate_amx, py::arg("on"),
        "For tests: programs built from now on may use AMX kernels on any machine, on a slow stand-in of the unit.");
  m.def("default_threads", &default_threads, "CPUs this process may run on.");
  m.def("ops", &known_ops, "Names of all kernels.");
  m.def("supports", &supports, py::arg("op"), py::arg("attrs"), py::arg("inputs"), py::arg("outputs"),
        py::arg("isa") = py::none(),
        "(ok, reason) for a node; operands are (dtype name, shape) or None. Weights are taken as not constant.");

  py::class_<Program> program(m, "Program",
      "Steps over a table of tensors.\n\n"
      "tensors: (dtype, shape, kind, where); kind 'arena' (where: byte offset, multiple of 64), 'constant' (array), 'mapped'\n"
      "(an array in a map of a file opened for reading: its pages are given back once it is packed), 'input' or\n"
      "'output' (index), 'alias' ((tensor, byte offset)). steps: (op, node name, attrs, input tensors, output tensors), -1 for\n"
      "absent operands. Constants that every reader packed are let go.");
  program
      .def(py::init<const py::sequence&, const py::sequence&, size_t, int, const py::object&>(), py::arg("tensors"),
           py::arg("steps"), py::arg("arena_bytes") = 0, py::arg("threads") = 0, py::arg("isa") = py::none())
      .def("profile", &Program::profile, py::arg("inputs"), py::arg("outputs") = py::none(),
           "Runs once; returns (step index, start ns, duration ns) per step.")
      .def("describe", &Program::describe, "One dict per step: op, name, attrs, inputs, outputs, algorithm, packed_bytes, scratch_bytes.")
      .def("set_output_types", &Program::set_output_types, py::arg("dtypes"), "numpy dtypes for run() without outputs.")
      .def("trim", [](Program& p) { p.plan().trim(); }, "Gives the memory of idle arenas back.")
      .def_property_readonly("memory", &Program::memory, "Bytes by purpose: arena, weights (packed + constants), scratch.")
      .def_property_readonly("threads", [](const Program& p) { return p.plan().threads(); })
      .def_property_readonly("isa", [](const Program& p) { return isa_name(p.plan().isa()); });
  auto run = py::reinterpret_steal<py::object>(
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(program.ptr()), &run_method));
  if (!run) throw py::error_already_set();
  program.attr("run") = run;
}

}  // namespace mnnpy
