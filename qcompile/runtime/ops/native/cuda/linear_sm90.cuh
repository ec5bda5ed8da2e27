// A quantized linear layer for Hopper: CUTLASS's warp-specialized kernel (one warp group copies tiles with the
// tensor memory accelerator, the others multiply with wgmma), our epilogue as a visitor tree.
//
// FP8: Hopper's tensor cores add E4M3 products with about 14 bits of mantissa. The operator promises float32, so
// every kernel here promotes its sum to float32 registers after each 128 products along K (the plain schedules of
// CUTLASS do; those named FP8FastAccum do not). That holds two sums a thread and so allows smaller tiles than int8.

#pragma once

#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/gemm/kernel/tile_scheduler.hpp>

#include "device.h"
#include "linear.h"
#include "linear_epilogue.cuh"

namespace qcompile::cuda::sm90 {

using namespace cute;

// The node of the visitor tree. CUTLASS instantiates it for a fragment of floats, and for float itself to learn
// the type of its run-time arguments.
template <class Stored>
struct Finisher {
  template <class Values>
  struct Of;
};

template <class Stored>
template <class Values>
struct Finisher<Stored>::Of {
  using Arguments = Finish;
  CUTLASS_DEVICE auto operator()(Values const& sum, Values const& x_scale, Values const& w_scale, Values const& bias,
                                 Values const& y_scale, Finish how) const {
    return finish<Stored>(sum, x_scale, w_scale, bias, y_scale, how);
  }
};

// Code: int8_t or cutlass::float_e4m3_t. Stored: float, Half or int8_t. Tile and Cluster: shapes along M, N, K.
template <class Code, class Stored, class Tile, class Cluster, class Schedule,
          class Scheduler = cutlass::gemm::PersistentScheduler>
struct Kernel {
  using Sum = conditional_t<is_same_v<Code, int8_t>, int32_t, float>;
  static constexpr bool cooperative = is_base_of_v<cutlass::gemm::KernelTmaWarpSpecializedCooperative, Schedule>;
  static constexpr int code_alignment = 16 / sizeof(Code);  // the tensor memory accelerator's 16 bytes
  static constexpr int stored_alignment = 16 / sizeof(Stored);

  using PerRow = cutlass::epilogue::fusion::Sm90ColBroadcast<0, Tile, float, float, Stride<bool, _0, _0>, 1>;
  using PerColumn = cutlass::epilogue::fusion::Sm90RowBroadcast<0, Tile, float, float, Stride<_0, _1, _0>, 4>;
  using Scalar = cutlass::epilogue::fusion::Sm90ScalarBroadcast<float>;
  using Node = cutlass::epilogue::fusion::Sm90Compute<Finisher<Stored>::template Of, Stored, float,
                                                      cutlass::FloatRoundStyle::round_to_nearest>;
  using Tree = cutlass::epilogue::fusion::Sm90EVT<Node, cutlass::epilogue::fusion::Sm90AccFetch, PerRow, PerColumn,
                                                  PerColumn, Scalar>;

  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, Sum, float, void, cutlass::layout::RowMajor, stored_alignment,
      Stored, cutlass::layout::RowMajor, stored_alignment,
      conditional_t<cooperative, cutlass::epilogue::TmaWarpSpecializedCooperative,
                    cutlass::epilogue::TmaWarpSpecialized>,
      Tree>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Code, cutlass::layout::RowMajor, code_alignment, Code,
      cutlass::layout::ColumnMajor, code_alignment, Sum, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      Schedule>::CollectiveOp;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<
      cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue, Scheduler>>;

  static typename Gemm::Arguments arguments(LinearArguments const& a) {
    int const m = static_cast<int>(a.m), n = static_cast<int>(a.n), k = static_cast<int>(a.k);
    typename Tree::Arguments tree{
        {},  // the sum
        typename PerRow::Arguments{a.x_scale, 0.0f, {a.scale_per_row, _0{}, _0{}}},
        typename PerColumn::Arguments{a.w_scale, 0.0f, {}},
        typename PerColumn::Arguments{a.bias, 0.0f, {}},      // null: 0
        typename Scalar::Arguments{{1.0f}, {a.y_scale}, {}},  // null: 1
        Finish{a.activation, a.type == Type::bf16}};
    typename Gemm::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {m, n, k, 1},
        {static_cast<Code const*>(a.x), {k, _1{}, 0}, static_cast<Code const*>(a.w), {k, _1{}, 0}},
        {tree, nullptr, {}, static_cast<Stored*>(a.y), {n, _1{}, 0}}};
    arguments.hw_info = {device().ordinal, device().processors};
    return arguments;
  }

  static size_t workspace(LinearArguments const& a) { return Gemm::get_workspace_size(arguments(a)); }

  static const char* launch(LinearArguments const& a, void* workspace, cudaStream_t stream) {
    auto const args = arguments(a);
    if (Gemm::can_implement(args) != cutlass::Status::kSuccess) return "the shape is not one that this kernel can take";
    Gemm gemm;
    auto const status = gemm.run(args, workspace, stream);
    return status == cutlass::Status::kSuccess ? nullptr : "the kernel could not be launched";
  }
};

// All that is stored with one tile and schedule; E4M3 has no requantized form.
template <class Code, class Tile, class Cluster, class Schedule, class Scheduler = cutlass::gemm::PersistentScheduler>
constexpr Configuration configuration(const char* name) {
  constexpr bool splits_k = is_same_v<Scheduler, cutlass::gemm::StreamKScheduler>;
  using ToFloat = Kernel<Code, float, Tile, Cluster, Schedule, Scheduler>;
  using ToHalf = Kernel<Code, Half, Tile, Cluster, Schedule, Scheduler>;
  Launcher to_int8;
  if constexpr (is_same_v<Code, int8_t>) {
    using ToInt8 = Kernel<Code, int8_t, Tile, Cluster, Schedule, Scheduler>;
    to_int8 = {ToInt8::workspace, ToInt8::launch};
  }
  return {name, size<0>(Tile{}), size<1>(Tile{}), size<0>(Cluster{}), splits_k, {ToFloat::workspace, ToFloat::launch},
          {ToHalf::workspace, ToHalf::launch}, to_int8};
}

}  // namespace qcompile::cuda::sm90
