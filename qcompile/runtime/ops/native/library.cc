// The library's doors: RegisterCustomOps, which ONNX Runtime calls, and two texts that say what is inside.

#include <onnxruntime_c_api.h>

#include <deque>
#include <exception>
#include <string>

#include "kernels.h"
#include "operators.h"
#include "tensors.h"

#ifdef _WIN32
#define QCOMPILE_EXPORT extern "C" __declspec(dllexport)
#else
#define QCOMPILE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace qcompile {
namespace {

// Calls `work`; what it throws becomes a status, since nothing may be thrown into the runtime.
template <class Work>
OrtStatus* Guarded(const OrtApi& api, Work work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const std::exception& fault) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, fault.what());
  } catch (...) {
    return api.CreateStatus(ORT_FAIL, "an unknown fault in the library of qcompile's operators");
  }
}

// One operator on one provider, in the form that the runtime's C API asks for.
struct Registration : OrtCustomOp {
  Registration(const Operator& op, Provider provider);

  const Operator* op;
  Provider provider;
};

const Registration& Self(const OrtCustomOp* op) { return *static_cast<const Registration*>(op); }

Registration::Registration(const Operator& op, Provider provider) : OrtCustomOp{}, op(&op), provider(provider) {
  version = ORT_API_VERSION;
  GetName = [](const OrtCustomOp* self) { return Self(self).op->name.c_str(); };
  GetExecutionProviderType = [](const OrtCustomOp* self) {
    return Self(self).provider == Provider::cuda ? "CUDAExecutionProvider" : "CPUExecutionProvider";
  };
  GetInputTypeCount = [](const OrtCustomOp* self) { return Self(self).op->inputs.size(); };
  GetInputType = [](const OrtCustomOp* self, size_t i) { return Self(self).op->inputs[i].type; };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetOutputTypeCount = [](const OrtCustomOp* self) { return Self(self).op->outputs.size(); };
  GetOutputType = [](const OrtCustomOp* self, size_t i) { return Self(self).op->outputs[i].type; };
  GetOutputCharacteristic = [](const OrtCustomOp* self, size_t i) {
    return Self(self).op->outputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  GetEndVersion = [](const OrtCustomOp*) { return 1; };
  CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return Guarded(*api, [&] { *kernel = new Kernel(*Self(self).op, Self(self).provider, info); });
  };
  KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    return Guarded(Api(), [&] { static_cast<const Kernel*>(kernel)->Run(context); });
  };
  KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
}

// The domain with everything registered. Sessions keep pointers into it, so it lives as long as the process.
OrtCustomOpDomain* Domain() {
  static OrtCustomOpDomain* const domain = [] {
    OrtCustomOpDomain* made = nullptr;
    Check(Api().CreateCustomOpDomain("qcompile", &made));
    auto& registrations = *new std::deque<Registration>;
    for (const Provider provider : kProviders) {
      for (const Operator& op : Catalogue()) {
        Check(Api().CustomOpDomain_Add(made, &registrations.emplace_back(op, provider)));
      }
    }
    return made;
  }();
  return domain;
}

}  // namespace
}  // namespace qcompile

QCOMPILE_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace qcompile;
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    const std::string message = "this library of qcompile's operators was built for ONNX Runtime 1." +
                                std::to_string(ORT_API_VERSION) + " or newer, this is " + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, message.c_str());
  }
  SetApi(api);
  return Guarded(*api, [&] { Check(Api().AddCustomOpDomain(options, Domain())); });
}

// What is inside, a line for each operator and provider: "cuda QuantizeRows(x) -> (x_q, x_scale)". The text stays
// valid; null when there is no memory for it.
QCOMPILE_EXPORT const char* qcompile_operators() {
  using namespace qcompile;
  try {
    static const std::string text = [] {
      std::string lines;
      for (const Provider provider : kProviders) {
        for (const Operator& op : Catalogue()) {
          lines += (provider == Provider::cpu ? "cpu " : "cuda ") + op.signature() + "\n";
        }
      }
      return lines;
    }();
    return text.c_str();
  } catch (...) {
    return nullptr;
  }
}

// What it was built for: "onnxruntime API, cuda VERSION, architectures LIST", the last two for a build with CUDA.
QCOMPILE_EXPORT const char* qcompile_build() {
#define QCOMPILE_TEXT(value) #value
#define QCOMPILE_VALUE(value) QCOMPILE_TEXT(value)
#ifdef QCOMPILE_CUDA
  return "onnxruntime " QCOMPILE_VALUE(ORT_API_VERSION) ", cuda " QCOMPILE_CUDA ", architectures " QCOMPILE_ARCHITECTURES;
#else
  return "onnxruntime " QCOMPILE_VALUE(ORT_API_VERSION);
#endif
}
