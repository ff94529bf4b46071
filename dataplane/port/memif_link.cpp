#include "dataplane/port/memif_link.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <new>
#include <string_view>
#include <utility>

#include "base/check.h"

namespace godwit::port::memif {
namespace {

constexpr std::uint32_t kAlignment = 64;

std::unexpected<std::string> failed(const std::string& operation) {
  return std::unexpected(operation + ": " + std::strerror(errno));
}

/// Where huge pages would be aligned: the rings are far larger than what the processor remembers of small ones. A hint,
/// taken where shmem_enabled of transparent_hugepage says "advise" or more.
std::expected<std::span<std::byte>, std::string> map_shared(int file, std::uint64_t bytes) {
  constexpr std::uintptr_t kHugePageBytes = 2U << 20;
  const std::size_t reserved_bytes = bytes + kHugePageBytes;
  void* const reserved = mmap(nullptr, reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) {
    return failed("mmap of " + std::to_string(bytes) + " bytes");
  }
  auto* const begin = static_cast<std::byte*>(reserved);
  std::byte* const aligned = begin + (kHugePageBytes - reinterpret_cast<std::uintptr_t>(begin) % kHugePageBytes);
  if (mmap(aligned, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
    const auto error = failed("mmap of " + std::to_string(bytes) + " bytes");
    munmap(reserved, reserved_bytes);
    return error;
  }
  munmap(begin, static_cast<std::size_t>(aligned - begin));
  std::byte* const end = aligned + (bytes + 4095) / 4096 * 4096;
  if (end < begin + reserved_bytes) {
    munmap(end, static_cast<std::size_t>(begin + reserved_bytes - end));
  }
  madvise(aligned, bytes, MADV_HUGEPAGE);
  return std::span(aligned, bytes);
}

Outgoing plain(Type type) { return {.message = {.type = type}}; }

constexpr std::uint64_t ring_bytes(std::uint32_t slots) {
  return (sizeof(RingHead) + slots * sizeof(Descriptor) + kAlignment - 1) / kAlignment * kAlignment;
}

bool is_eventfd(int file) {
  std::array<char, 32> target{};
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  const ssize_t bytes = readlink(path.c_str(), target.data(), target.size());
  return bytes > 0 && std::string_view(target.data(), static_cast<std::size_t>(bytes)) == "anon_inode:[eventfd]";
}

constexpr Name kName = {"godwit"};

std::string too_few_rings(std::size_t has, std::size_t needed) {
  return "it has " + std::to_string(has) + " rings and we need " + std::to_string(needed) +
         " for our lcores: give both ends as many";
}

}  // namespace

std::expected<Region, std::string> Region::make(std::uint64_t bytes) {
  UniqueFd file(memfd_create("godwit-memif", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file.valid() || ftruncate(file.get(), static_cast<off_t>(bytes)) != 0 ||
      fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return failed("memfd of " + std::to_string(bytes) + " bytes");
  }
  const auto mapped = map_shared(file.get(), bytes);
  if (!mapped) {
    return std::unexpected(mapped.error());
  }
  return Region(std::move(file), *mapped);
}

std::expected<Region, std::string> Region::map(UniqueFd file, std::uint64_t bytes) {
  const int seals = fcntl(file.get(), F_GET_SEALS);
  struct stat status {};
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return std::unexpected("its memory is not sealed against shrinking");
  }
  if (bytes == 0 || bytes > kRegionBytesMax || fstat(file.get(), &status) != 0 ||
      static_cast<std::uint64_t>(status.st_size) < bytes) {
    return std::unexpected("its memory is not of the " + std::to_string(bytes) + " bytes that it says");
  }
  const auto mapped = map_shared(file.get(), bytes);
  if (!mapped) {
    return std::unexpected(mapped.error());
  }
  return Region(std::move(file), *mapped);
}

Region::Region(Region&& other) noexcept
    : file_(std::move(other.file_)), bytes_(std::exchange(other.bytes_, std::span<std::byte>())) {}

Region::~Region() {
  if (!bytes_.empty()) {
    munmap(bytes_.data(), bytes_.size());
  }
}

Outgoing Handshake::hello() const {
  const auto last = static_cast<std::uint16_t>(options_.rings - 1);
  const Hello hello{.name = kName,
                    .version_min = kVersion,
                    .version_max = kVersion,
                    .region_max = kRegionsMax - 1,
                    .s2c_ring_max = last,
                    .c2s_ring_max = last,
                    .log2_slots_max = kLog2SlotsMax};
  return {.message = message_of(Type::kHello, hello)};
}

Handshake::Answer Handshake::on_message(const Message& message, UniqueFd file) {
  GW_ASSERT(!done_);
  if (message.type == Type::kDisconnect) {
    return on_disconnect(message.as<Disconnect>());
  }
  if (options_.client) {
    if (message.type == Type::kHello && !begun_) {
      return on_hello(message.as<Hello>());
    }
    if (message.type == Type::kAck && begun_) {
      return next_request();
    }
    if (message.type == Type::kConnected && begun_ && requested_ == 2 + link_->send.size() + link_->receive.size()) {
      done_ = true;
      return std::nullopt;
    }
  } else if (message.type == Type::kInit && !begun_) {
    return on_init(message.as<Init>());
  } else if (begun_) {
    switch (message.type) {
      case Type::kAddRegion:
        return on_region(message.as<AddRegion>(), std::move(file));
      case Type::kAddRing:
        return on_ring(message.as<AddRing>(), std::move(file));
      case Type::kConnect:
        return on_connect();
      default:
        break;
    }
  }
  return std::unexpected("message " + std::to_string(static_cast<unsigned>(message.type)) + " out of turn");
}

Handshake::Answer Handshake::on_disconnect(const Disconnect& disconnect) {
  const auto& reason = disconnect.reason;
  std::string text(reason.begin(), std::find(reason.begin(), reason.end(), '\0'));
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  // DPDK's server greets with the most that any has, and refuses a ring that it has no queue for: here the second one
  // to it (region, ring 0, ring 1), or the second one from it.
  one_ring_ = options_.client && options_.rings == 2 && (requested_ == 3 || requested_ == 5);
  return std::unexpected("it refuses: " + text);
}

Handshake::Answer Handshake::on_hello(const Hello& hello) {
  if (hello.version_min > kVersion || hello.version_max < kVersion) {
    return std::unexpected("it speaks another version");
  }
  const auto send = static_cast<std::uint16_t>(std::min<unsigned>(options_.rings, hello.c2s_ring_max + 1U));
  const auto receive = static_cast<std::uint16_t>(std::min<unsigned>(options_.rings, hello.s2c_ring_max + 1U));
  if (options_.rings > 2 && std::min(send, receive) < options_.rings) {
    return std::unexpected(too_few_rings(std::min(send, receive), options_.rings));
  }
  if (auto made = make_memory(send, receive, std::min(kLog2Slots, hello.log2_slots_max)); !made) {
    return std::unexpected(made.error());
  }
  begun_ = true;
  const Init init{.version = kVersion, .id = 0, .mode = 0, .secret = {}, .name = kName};
  return Outgoing{.message = message_of(Type::kInit, init)};
}

/// Region 0: all rings, then the buffers of each.
std::expected<void, std::string> Handshake::make_memory(std::uint16_t send, std::uint16_t receive,
                                                        std::uint8_t log2_slots) {
  const std::uint32_t slots = 1U << log2_slots;
  const std::uint64_t rings = std::uint64_t{send} + receive;
  const std::uint64_t buffer_bytes_each = std::uint64_t{slots} * options_.buffer_bytes;
  const std::uint64_t buffers_at = (rings * ring_bytes(slots) + 4095) / 4096 * 4096;
  const std::uint64_t bytes = (buffers_at + rings * buffer_bytes_each + 4095) / 4096 * 4096;
  if (bytes > kRegionBytesMax) {
    return std::unexpected("more than 4 GiB of buffers; use fewer lcores");
  }
  auto region = Region::make(bytes);
  if (!region) {
    return std::unexpected(region.error());
  }
  link_->client = true;
  link_->buffer_bytes = options_.buffer_bytes;
  for (std::uint64_t i = 0; i < rings; ++i) {
    const bool sends = i < send;
    Ring ring{.slots = slots, .interrupt = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))};
    if (!ring.interrupt.valid()) {
      return failed("eventfd");
    }
    ring.offset = static_cast<std::uint32_t>(i * ring_bytes(slots));
    ring.head = new (region->bytes().data() + ring.offset) RingHead{};
    ring.head->cookie = kCookie;
    ring.head->flags = kMaskInterrupt;
    ring.buffers = region->bytes().subspan(buffers_at + i * buffer_bytes_each, buffer_bytes_each);
    for (std::uint32_t slot = 0; slot < slots; ++slot) {
      const std::uint64_t at = buffers_at + i * buffer_bytes_each + std::uint64_t{slot} * options_.buffer_bytes;
      ring.descriptors()[slot] = {0, 0, options_.buffer_bytes, static_cast<std::uint32_t>(at), 0};
    }
    (sends ? link_->send : link_->receive).emplace_back(std::move(ring));
  }
  link_->regions.push_back(std::move(*region));
  return {};
}

Outgoing Handshake::add_ring(std::size_t index, bool to_server) const {
  const Ring& ring = *(to_server ? link_->send : link_->receive)[index];
  const AddRing request{.flags = to_server ? kToServer : std::uint16_t{0},
                        .index = static_cast<std::uint16_t>(index),
                        .region = ring.region,
                        .offset = ring.offset,
                        .log2_slots = static_cast<std::uint8_t>(std::countr_zero(ring.slots)),
                        .private_bytes = 0};
  return {.message = message_of(Type::kAddRing, request), .file = ring.interrupt.get()};
}

/// One at a time: each waits for the acknowledgement of the last.
Handshake::Answer Handshake::next_request() {
  const std::size_t request = requested_++;
  if (request == 0) {
    const AddRegion add{.index = 0, .bytes = link_->regions[0].bytes().size()};
    return Outgoing{.message = message_of(Type::kAddRegion, add), .file = link_->regions[0].file()};
  }
  const std::size_t ring = request - 1;
  if (ring < link_->send.size()) {
    return add_ring(ring, true);
  }
  if (ring - link_->send.size() < link_->receive.size()) {
    return add_ring(ring - link_->send.size(), false);
  }
  if (ring > link_->send.size() + link_->receive.size()) {
    return std::unexpected("one acknowledgement too many");
  }
  return Outgoing{.message = message_of(Type::kConnect, Connect{.name = kName})};
}

Handshake::Answer Handshake::on_init(const Init& init) {
  if (init.version != kVersion || init.id != 0 || init.mode != 0) {
    return std::unexpected("it wants another version, interface or mode than 2.0, 0 and Ethernet");
  }
  link_->send.resize(options_.rings);
  link_->receive.resize(options_.rings);
  begun_ = true;
  return plain(Type::kAck);
}

Handshake::Answer Handshake::on_region(const AddRegion& request, UniqueFd file) {
  if (!file.valid() || request.index != link_->regions.size() || request.index >= kRegionsMax) {
    return std::unexpected("region " + std::to_string(request.index) + " is out of turn, or without memory");
  }
  auto region = Region::map(std::move(file), request.bytes);
  if (!region) {
    return std::unexpected(region.error());
  }
  link_->regions.push_back(std::move(*region));
  return plain(Type::kAck);
}

Handshake::Answer Handshake::on_ring(const AddRing& request, UniqueFd file) {
  auto& rings = (request.flags & kToServer) != 0 ? link_->receive : link_->send;
  const std::string name = "ring " + std::to_string(request.index);
  if (!file.valid() || request.index >= rings.size() || rings[request.index]) {
    return std::unexpected(name + " is there already, one too many, or without its eventfd");
  }
  if (request.log2_slots > kLog2SlotsMax || request.private_bytes != 0) {
    return std::unexpected(name + " has more than 2^14 slots, or private metadata");
  }
  const std::uint32_t slots = 1U << request.log2_slots;
  if (request.region >= link_->regions.size() || request.offset % kAlignment != 0 ||
      request.offset + ring_bytes(slots) > link_->regions[request.region].bytes().size()) {
    return std::unexpected(name + " lies outside its memory");
  }
  if (!is_eventfd(file.get())) {
    return std::unexpected(name + " has no eventfd");
  }
  auto* const head = reinterpret_cast<RingHead*>(link_->regions[request.region].bytes().data() + request.offset);
  head->flags.store(kMaskInterrupt, std::memory_order_relaxed);
  rings[request.index] = Ring{.head = head,
                              .slots = slots,
                              .buffers = {},
                              .interrupt = std::move(file),
                              .offset = request.offset,
                              .region = request.region};
  return plain(Type::kAck);
}

Handshake::Answer Handshake::on_connect() {
  if (!link_->send[0] || !link_->receive[0]) {
    return std::unexpected("it has no rings");
  }
  const auto there = [](const auto& rings) {
    return std::ranges::count_if(rings, [](const auto& ring) { return ring.has_value(); });
  };
  const auto has = static_cast<std::size_t>(std::min(there(link_->send), there(link_->receive)));
  if (options_.rings > 2 && has < options_.rings) {
    return std::unexpected(too_few_rings(has, options_.rings));
  }
  done_ = true;
  return Outgoing{.message = message_of(Type::kConnected, Connect{.name = kName})};
}

}  // namespace godwit::port::memif
