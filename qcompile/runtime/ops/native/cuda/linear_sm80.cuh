// A quantized linear layer for Ampere and Ada: CUTLASS's multistage kernel on mma.sync, our epilogue as a visitor
// tree. Its stream-K schedule gives each multiprocessor the same share of products, also when there are few tiles;
// it fixes the order of partial sums, so that results are reproducible.

#pragma once

// clang-format off: the visitors do not include what they need
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>
#include <cutlass/gemm/threadblock/threadblock_swizzle_streamk.h>
#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>
// clang-format on

#include "device.h"
#include "linear.h"
#include "linear_epilogue.cuh"

namespace qcompile::cuda::sm80 {

using cutlass::gemm::GemmShape;

// The epilogue, a visitor in CUTLASS's sense that keeps all of its arguments by value. (CUTLASS's own visitors keep
// pointers to theirs, which the stream-K kernel's copy of its parameters would turn into local memory.)
template <class Threads, class Stored, class Sum>
struct Visitor {
  static constexpr int width = Threads::kElementsPerAccess;  // elements of a row that a thread handles at once
  static constexpr int columns = Threads::Iterations::kColumn;
  using Floats = cutlass::Array<float, width>;
  using Arguments = LinearArguments;
  using Params = LinearArguments;
  struct SharedStorage {};

  template <class ProblemShape>
  static constexpr Params to_underlying_arguments(ProblemShape const&, Arguments const& a, void*) {
    return a;
  }

  CUTLASS_HOST_DEVICE Visitor() {}
  CUTLASS_HOST_DEVICE Visitor(Params const& a, SharedStorage const&) : a(a) {}

  LinearArguments a;

  template <class Places>
  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    CUTLASS_DEVICE Callbacks(LinearArguments const& a, Places const& places) : a(a), places(places) {}

    LinearArguments a;
    Places places;  // (element, column, row, step) -> (m, n, 0)
    Floats w_scale[columns], bias[columns], y_scale;

    CUTLASS_DEVICE void begin_epilogue() {
      y_scale.fill(a.y_scale != nullptr ? __ldg(a.y_scale) : 1.0f);
      CUTLASS_PRAGMA_UNROLL
      for (int column = 0; column < columns; ++column) {
        int const n = cute::get<1>(places(0, column, 0, 0));
        bool const inside = n < a.n;
        w_scale[column].clear();
        bias[column].clear();
        cutlass::arch::global_load<Floats, sizeof(Floats)>(w_scale[column], a.w_scale + n, inside);
        cutlass::arch::global_load<Floats, sizeof(Floats)>(bias[column], a.bias + n, inside && a.bias != nullptr);
      }
    }

    template <int N>
    CUTLASS_DEVICE auto visit(int step, int row, int column, int, cutlass::Array<Sum, N> const& sum) {
      static_assert(N == width);
      auto const place = places(0, column, row, step);
      int const m = cute::get<0>(place), n = cute::get<1>(place);
      bool const inside = m < a.m && n < a.n;
      Floats x_scale;
      x_scale.fill(inside ? __ldg(a.x_scale + (a.scale_per_row ? m : 0)) : 0.0f);
      cutlass::NumericArrayConverter<float, Sum, N> to_float;
      auto const y = finish<Stored>(to_float(sum), x_scale, w_scale[column], bias[column], y_scale,
                                    Finish{a.activation, a.type == Type::bf16});
      Stored* const to = static_cast<Stored*>(a.y) + m * a.n + n;
      cutlass::arch::global_store<cutlass::Array<Stored, N>, sizeof(y)>(y, to, inside);
      return y;
    }
  };

  template <class ProblemShape>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord tile, int thread, ProblemShape shape) {
    auto const places =
        cute::group_modes<3, 6>(Threads::partition(cute::make_identity_tensor(shape), thread, tile));
    return Callbacks<cute::remove_cvref_t<decltype(places)>>(a, places);
  }
};

// Code: int8_t (mma of Ampere) or cutlass::float_e4m3_t (mma of Ada). Stored: float, Half or int8_t. Tile and Warp:
// shapes along M, N, K of a thread block and of one of its warps.
template <class Code, class Stored, class Tile, class Warp, int stages>
struct Kernel {
  static constexpr bool integers = cute::is_same_v<Code, int8_t>;
  using Sum = cute::conditional_t<integers, int32_t, float>;
  static constexpr int code_alignment = 16;                                        // cp.async's 16 bytes
  static constexpr int stored_alignment = cute::is_same_v<Stored, float> ? 4 : 8;  // divides N
  using Architecture = cute::conditional_t<integers, cutlass::arch::Sm80, cutlass::arch::Sm89>;
  // CUTLASS lays out shared memory for the output by its type; for ours it is half_t that is two bytes wide.
  using Layout = cute::conditional_t<cute::is_same_v<Stored, Half>, cutlass::half_t, Stored>;

  using Threads = cutlass::epilogue::threadblock::OutputTileThreadLayout<Tile, Warp, Layout, stored_alignment, 1>;
  using Epilogue = Visitor<Threads, Stored, Sum>;

  using GemmKernel = typename cutlass::gemm::kernel::DefaultGemmWithVisitor<
      Code, cutlass::layout::RowMajor, cutlass::ComplexTransform::kNone, code_alignment,
      Code, cutlass::layout::ColumnMajor, cutlass::ComplexTransform::kNone, code_alignment,
      Layout, cutlass::layout::RowMajor, stored_alignment, Sum, float, cutlass::arch::OpClassTensorOp,
      Architecture, Tile, Warp, GemmShape<16, 8, 32>, Epilogue,
      cutlass::gemm::threadblock::ThreadblockSwizzleStreamK, stages,
      cute::conditional_t<integers, cutlass::arch::OpMultiplyAddSaturate, cutlass::arch::OpMultiplyAdd>,
      1>::GemmKernel;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<GemmKernel>;
  static_assert(sizeof(typename GemmKernel::SharedStorage) <= 99 * 1024, "consumer cards give a block no more");

  static typename Gemm::Arguments arguments(LinearArguments const& a) {
    int const m = static_cast<int>(a.m), n = static_cast<int>(a.n), k = static_cast<int>(a.k);
    return typename Gemm::Arguments(cutlass::gemm::GemmUniversalMode::kGemm, {m, n, k}, 1, a, a.x, a.w, nullptr,
                                    nullptr, a.m * a.k, a.n * a.k, 0, 0, a.k, a.k, 0, 0);
  }

  static size_t workspace(LinearArguments const& a) { return Gemm::get_workspace_size(arguments(a)); }

  static const char* launch(LinearArguments const& a, void* workspace, cudaStream_t stream) {
    Gemm gemm;
    auto status = gemm.initialize(arguments(a), workspace, stream);
    if (status == cutlass::Status::kSuccess) status = gemm.run(stream);
    return status == cutlass::Status::kSuccess ? nullptr : "the kernel could not be launched";
  }
};

// All that is stored with one tile; E4M3 has no requantized form.
template <class Code, class Tile, class Warp, int stages>
constexpr Configuration configuration(const char* name) {
  using ToFloat = Kernel<Code, float, Tile, Warp, stages>;
  using ToHalf = Kernel<Code, Half, Tile, Warp, stages>;
  Launcher to_int8;
  if constexpr (cute::is_same_v<Code, int8_t>) {
    using ToInt8 = Kernel<Code, int8_t, Tile, Warp, stages>;
    to_int8 = {ToInt8::workspace, ToInt8::launch};
  }
  return {name, Tile::kM, Tile::kN, 1, true, {ToFloat::workspace, ToFloat::launch}, {ToHalf::workspace, ToHalf::launch},
          to_int8};
}

}  // namespace qcompile::cuda::sm80
