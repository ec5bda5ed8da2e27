#include "tuning.h"

#include <map>
#include <mutex>
#include <shared_mutex>
#include <tuple>

namespace qcompile::cuda {
namespace {

using Shape = std::tuple<Kind, int64_t, int64_t, int64_t>;

std::shared_mutex mutex;
std::map<Shape, int> choices;

}  // namespace

int64_t row_bucket(int64_t m) {
  int64_t bucket = 1;
  while (bucket < m && bucket < 8192) bucket *= 2;
  return bucket;
}

void set_choice(Kind kind, int64_t m, int64_t n, int64_t k, int configuration) {
  std::unique_lock lock(mutex);
  choices[{kind, row_bucket(m), n, k}] = configuration;
}

void clear_choices() {
  std::unique_lock lock(mutex);
  choices.clear();
}

int choice(Kind kind, int64_t m, int64_t n, int64_t k) {
  std::shared_lock lock(mutex);
  auto const found = choices.find({kind, row_bucket(m), n, k});
  return found == choices.end() ? -1 : found->second;
}

}  // namespace qcompile::cuda
