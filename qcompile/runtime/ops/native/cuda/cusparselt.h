// NVIDIA's cuSPARSELt, opened when the first Linear24 is created, so that this library loads without it.
//
// Its name is libcusparseLt.so.0; QCOMPILE_CUSPARSELT, a path, is tried first. Versions 0.8 to 0.10 share one
// binary interface; older ones have larger opaque structures and are refused.

#pragma once

#if __has_include(<cusparseLt.h>)
#define QCOMPILE_HAS_CUSPARSELT
#include <cusparseLt.h>
#include <dlfcn.h>

#include <cstdlib>
#include <string>

namespace qcompile::cuda {

#define QCOMPILE_CUSPARSELT_FUNCTIONS(F)                                                                        \
  F(Init) F(Destroy) F(GetProperty) F(GetErrorString) F(DenseDescriptorInit) F(StructuredDescriptorInit)        \
  F(MatDescriptorDestroy) F(MatmulDescriptorInit) F(MatmulDescSetAttribute) F(MatmulAlgSelectionInit)           \
  F(MatmulAlgSelectionDestroy) F(MatmulPlanInit) F(MatmulPlanDestroy) F(MatmulGetWorkspace) F(Matmul)           \
  F(SpMMACompressedSize2) F(SpMMACompress2)

struct CuSparseLt {
#define QCOMPILE_MEMBER(name) decltype(&cusparseLt##name) name = nullptr;
  QCOMPILE_CUSPARSELT_FUNCTIONS(QCOMPILE_MEMBER)
#undef QCOMPILE_MEMBER
  std::string error;  // empty, or why the library cannot be used
};

inline CuSparseLt open_cusparselt() {
  CuSparseLt library;
  const char* path = std::getenv("QCOMPILE_CUSPARSELT");
  void* handle = dlopen(path != nullptr && *path != '\0' ? path : "libcusparseLt.so.0", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = dlerror();
    library.error = std::string("cuSPARSELt is not there (") + (why != nullptr ? why : "dlopen failed") +
                    "): pip install nvidia-cusparselt-cu13, or let QCOMPILE_CUSPARSELT name libcusparseLt.so.0";
    return library;
  }
#define QCOMPILE_FIND(name)                                                                     \
  library.name = reinterpret_cast<decltype(library.name)>(dlsym(handle, "cusparseLt" #name));   \
  if (library.name == nullptr) library.error = "cuSPARSELt is too old: 0.8 or later is needed";
  QCOMPILE_CUSPARSELT_FUNCTIONS(QCOMPILE_FIND)
#undef QCOMPILE_FIND
  if (!library.error.empty()) return library;
  int major = 0, minor = 0;
  library.GetProperty(MAJOR_VERSION, &major);
  library.GetProperty(MINOR_VERSION, &minor);
  if (major != CUSPARSELT_VER_MAJOR || minor < 8) {
    library.error = "cuSPARSELt " + std::to_string(major) + "." + std::to_string(minor) +
                    " has another binary interface: 0.8 or a later 0.x is needed";
  }
  return library;
}

inline const CuSparseLt& cusparselt() {
  static const CuSparseLt library = open_cusparselt();  // stays open: plans may outlive any one session
  return library;
}

}  // namespace qcompile::cuda
#endif
