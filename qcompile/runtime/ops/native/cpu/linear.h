// The linear layers of LinearArguments: the product of two kinds of operands, and what follows it.

#pragma once

#include <cmath>

#include "arguments.h"
#include "cpu/numbers.h"
#include "cpu/products.h"

namespace qcompile::cpu {

inline float Activated(float y, Activation activation) {
  switch (activation) {
    case Activation::none: return y;
    case Activation::relu: return y > 0 || std::isnan(y) ? y : 0.0f;
    case Activation::gelu: return y * (std::erf(y / std::sqrt(2.0f)) + 1.0f) * 0.5f;
    case Activation::silu: return y / (1.0f + std::exp(-y));
  }
  return y;
}

// Element (row, column) of the result, from the sum of the products.
inline void Finish(const LinearArguments& args, int64_t row, int64_t column, float y) {
  if (args.x_scale != nullptr) y = y * args.x_scale[args.scale_per_row ? row : 0] * args.w_scale[column];
  if (args.bias != nullptr) y += args.bias[column];
  y = Activated(y, args.activation);
  const int64_t i = row * args.n + column;
  if (args.y_scale != nullptr) {
    static_cast<int8_t*>(args.y)[i] = ToInt8(y / args.y_scale[0], -128, 127);
  } else {
    Store(args.y, args.type, i, y);
  }
}

// The layer whose operands are loaded element by element: load(data, i) gives an Element.
template <class Element, class LoadElement>
void Linear(const LinearArguments& args, LoadElement load) {
  const auto rows_of = [&](const void* data) {
    return [data, k = args.k, load](int64_t row, Element* out) {
      for (int64_t i = 0; i < k; ++i) out[i] = load(data, row * k + i);
    };
  };
  Multiply<Element>(args.m, args.n, args.k, rows_of(args.x), rows_of(args.w), [&](int64_t row, int64_t column, auto sum) {
    Finish(args, row, column, static_cast<float>(sum));
  });
}

}  // namespace qcompile::cpu
