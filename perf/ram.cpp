#include "perf/ram.h"

#include <fcntl.h>
#include <fmt/core.h>

#include <algorithm>
#include <random>

namespace godwit::perf {

std::expected<Ram, std::string> Ram::make(const char* name, std::uint64_t bytes) {
  Ram ram;
  ram.file_ = UniqueFd(::memfd_create(name, MFD_CLOEXEC));
  ram.bytes_ = bytes;
  if (!ram.file_.valid() || ::fallocate(ram.file_.get(), 0, 0, static_cast<off_t>(bytes)) != 0) {
    return std::unexpected(fmt::format("{} MiB of memory for {}: {}", bytes >> 20, name, std::strerror(errno)));
  }
  void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ram.file_.get(), 0);
  if (at == MAP_FAILED) {
    return std::unexpected(fmt::format("mapping {}: {}", name, std::strerror(errno)));
  }
  ram.words_ = static_cast<std::uint64_t*>(at);
  return ram;
}

void Ram::fill_random() {
  std::mt19937_64 random(1);
  for (std::uint64_t i = 0; i < bytes_ / sizeof(std::uint64_t); ++i) words_[i] = random();
}

std::expected<RamPair, std::string> RamPair::make(std::uint64_t bytes) {
  auto source = Ram::make("source-ram", bytes);
  if (!source) return std::unexpected(source.error());
  auto destination = Ram::make("destination-ram", bytes);
  if (!destination) return std::unexpected(destination.error());
  source->fill_random();
  destination->fill();
  return RamPair{std::move(*source), std::move(*destination)};
}

bool Ram::untouched(pages::PageNumber page) const {
  const auto* const bytes = reinterpret_cast<const unsigned char*>(at(page));
  return std::all_of(bytes, bytes + pages::kPageSize, [](unsigned char byte) { return byte == kFill; });
}

}  // namespace godwit::perf
