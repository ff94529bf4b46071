#include "dataplane/memserver/page_index.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace godwit::memserver::test {
namespace {

TEST(PageIndex, AgreesWithAMapUnderCollisions) {
  constexpr std::uint64_t kRecords = 64;
  PageIndex index(kRecords);
  std::mt19937_64 random(3);
  std::map<std::uint32_t, std::uint64_t> hashes;  // of records that are in it
  const auto hash_of = [&](std::uint32_t record) { return hashes.at(record); };
  for (int step = 0; step < 200000; ++step) {
    const auto record = static_cast<std::uint32_t>(random() % kRecords);
    if (hashes.contains(record)) {
      index.erase(hashes.at(record), record, hash_of);
      hashes.erase(record);
    } else {
      // Few different homes, at the end too, so that searches are long and go round.
      hashes[record] = (random() % 6) * (UINT64_MAX / 6) + random() % 4;
      index.insert(hashes[record], record);
    }
    const auto asked = static_cast<std::uint32_t>(random() % kRecords);
    const std::uint64_t hash = hashes.contains(asked) ? hashes.at(asked) : random();
    const auto found = index.find(hash, [&](std::uint32_t candidate) { return candidate == asked; });
    ASSERT_EQ(found, hashes.contains(asked) ? asked : PageIndex::kNone) << step;
  }
}

}  // namespace
}  // namespace godwit::memserver::test
