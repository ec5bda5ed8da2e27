// LinearW4A16: a linear layer on 4-bit weights with a scale for each block along k.

#include "linear_w4a16.cuh"

#include "cuda/families.h"

namespace qcompile::cuda {
namespace {

bool by_tiles(const BlockLinearArguments& a) { return a.type != Type::f32 && a.m > decode_rows; }

}  // namespace

size_t LinearW4A16_workspace(const BlockLinearArguments& a) { return by_tiles(a) ? w4a16_tile_workspace(a) : 0; }

const char* LinearW4A16(const BlockLinearArguments& a, void* workspace, cudaStream_t stream) {
  if (a.block != 32 && a.block != 64 && a.block != 128) return "block_size is 32, 64 or 128";
  if (a.k % a.block != 0) return "k is a multiple of block_size";  // so 16 bytes of codes lie in one row and block
  if (!aligned_to_16({a.x, a.w, a.w_scale, a.w_zero})) return "an operand does not start at a multiple of 16 bytes";
  if (a.type == Type::f32) return w4a16_float(a, stream);
  return by_tiles(a) ? w4a16_tile(a, static_cast<float*>(workspace), stream) : w4a16_decode(a, stream);
}

}  // namespace qcompile::cuda
