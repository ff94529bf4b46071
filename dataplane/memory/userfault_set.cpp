#include "dataplane/memory/userfault_set.h"

#include <algorithm>
#include <utility>

namespace godwit::memory {
namespace {

constexpr std::uint64_t end_of(QemuRange range) { return range.address + range.bytes; }

}  // namespace

std::expected<std::shared_ptr<UserfaultSet>, Error> UserfaultSet::adopt(std::vector<UserfaultPart> parts,
                                                                        std::uint64_t features) {
  // No bytes sort last.
  std::ranges::sort(parts, {},
                    [](const UserfaultPart& part) { return std::pair(part.range.bytes == 0, part.range.address); });
  std::vector<Part> adopted;
  for (UserfaultPart& part : parts) {
    const bool wraps = part.range.address > UINT64_MAX - part.range.bytes;
    const bool second_rest = part.range.bytes == 0 && !adopted.empty() && adopted.back().range.bytes == 0;
    const bool overlaps =
        part.range.bytes != 0 && !adopted.empty() && end_of(adopted.back().range) > part.range.address;
    if (wraps || second_rest || overlaps) {
      return std::unexpected(Error{ErrorCode::kBadArgument, "two userfaultfds were given for the same addresses"});
    }
    auto userfault = Userfault::adopt(std::move(part.fd), features);
    if (!userfault) {
      return std::unexpected(userfault.error());
    }
    adopted.push_back({part.range, std::move(*userfault)});
  }
  if (adopted.empty()) {
    return std::unexpected(Error{ErrorCode::kUnsupported, "no userfaultfd of QEMU was given"});
  }
  return std::shared_ptr<UserfaultSet>(new UserfaultSet(std::move(adopted), features));
}

UserfaultSet::UserfaultSet(std::vector<Part> parts, std::uint64_t features)
    : parts_(std::move(parts)),
      features_(features),
      reader_(std::make_unique<UserfaultReader>(descriptors(), features)) {}

std::vector<int> UserfaultSet::descriptors() const {
  std::vector<int> descriptors;
  for (const Part& part : parts_) {
    descriptors.push_back(part.userfault.fd());
  }
  return descriptors;
}

std::expected<std::pair<Userfault*, QemuRange>, Error> UserfaultSet::first_of(QemuRange range) {
  std::uint64_t end = end_of(range);
  for (Part& part : parts_) {
    if (part.range.bytes == 0) {
      return std::pair(&part.userfault, QemuRange{range.address, end - range.address});
    }
    if (range.address < part.range.address) {
      end = std::min(end, part.range.address);
    } else if (range.address < end_of(part.range)) {
      return std::pair(&part.userfault, QemuRange{range.address, std::min(end, end_of(part.range)) - range.address});
    }
  }
  return std::unexpected(Error{ErrorCode::kBadArgument, "no userfaultfd was given for part of QEMU's RAM"});
}

template <class F>
std::expected<void, Error> UserfaultSet::for_each(QemuRange range, F f) {
  while (range.bytes > 0) {
    const auto first = first_of(range);
    if (!first) {
      return std::unexpected(first.error());
    }
    if (auto done = f(*first->first, first->second); !done) {
      return done;
    }
    range = {range.address + first->second.bytes, range.bytes - first->second.bytes};
  }
  return {};
}

template <class F>
Mapped UserfaultSet::map_each(QemuRange range, F f) {
  Mapped mapped;
  const auto done = for_each(range, [&](Userfault& userfault, QemuRange part) -> std::expected<void, Error> {
    const Mapped here = f(userfault, part, mapped.bytes);
    mapped.bytes += here.bytes;
    mapped.error = here.error;
    return here.error == 0 ? std::expected<void, Error>{} : std::unexpected(Error{});
  });
  if (!done && mapped.error == 0) {
    mapped.error = EINVAL;
  }
  return mapped;
}

std::expected<void, Error> UserfaultSet::register_write_protect(QemuRange range) {
  return for_each(range, [](Userfault& one, QemuRange part) { return one.register_write_protect(part); });
}

std::expected<void, Error> UserfaultSet::register_missing(QemuRange range, bool huge, bool write_protect) {
  return for_each(range,
                  [&](Userfault& one, QemuRange part) { return one.register_missing(part, huge, write_protect); });
}

std::expected<void, Error> UserfaultSet::protect(QemuRange range) {
  return for_each(range, [](Userfault& one, QemuRange part) { return one.protect(part); });
}

std::expected<bool, Error> UserfaultSet::try_unprotect(QemuRange range) {
  bool all = true;
  const auto done = for_each(range, [&](Userfault& one, QemuRange part) -> std::expected<void, Error> {
    const auto unprotected = one.try_unprotect(part);
    all = all && unprotected.value_or(false);
    return unprotected ? std::expected<void, Error>{} : std::unexpected(unprotected.error());
  });
  return done ? std::expected<bool, Error>(all) : std::unexpected(done.error());
}

std::expected<void, Error> UserfaultSet::unregister(QemuRange range) {
  return for_each(range, [](Userfault& one, QemuRange part) { return one.unregister(part); });
}

std::expected<void, Error> UserfaultSet::wake(QemuRange range) {
  return for_each(range, [](Userfault& one, QemuRange part) { return one.wake(part); });
}

Mapped UserfaultSet::copy(QemuRange range, const std::byte* from, bool protect) {
  return map_each(
      range, [&](Userfault& one, QemuRange part, std::uint64_t done) { return one.copy(part, from + done, protect); });
}

Mapped UserfaultSet::map_cached(QemuRange range, bool protect) {
  return map_each(
      range, [&](Userfault& one, QemuRange part, std::uint64_t /*done*/) { return one.map_cached(part, protect); });
}

}  // namespace godwit::memory
