// memif's handshake: what a peer says on the control socket, and the descriptors that come with it.
// Input: one byte (bit 0: we are the client), then messages: a byte that says which descriptor comes along, the type
// (16 bits), the length of the body (8 bits), the body, which zeros fill up.
// Properties: whatever is said, each ring of a link that stands lies whole and aligned in one of its regions, with its
// eventfd; every message is answered, ends the handshake, or is refused with one line for a person.

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "base/unique_fd.h"
#include "dataplane/port/memif_link.h"
#include "tests/fuzz/fuzz.h"

namespace godwit::fuzz {
namespace {

using namespace port::memif;

constexpr Options kOptions{.client = false, .rings = 2, .buffer_bytes = 2048};
constexpr std::uint64_t kRegionBytes = 65536;

enum class Comes : std::uint8_t { kNothing, kMemory, kUnsealed, kEvent, kOther, kCount };

UniqueFd descriptor(Comes what) {
  switch (what) {
    case Comes::kMemory:
    case Comes::kUnsealed: {
      UniqueFd file(memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING));
      FUZZ_CHECK(ftruncate(file.get(), kRegionBytes) == 0);
      FUZZ_CHECK(what == Comes::kUnsealed || fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0);
      return file;
    }
    case Comes::kEvent:
      return UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    case Comes::kOther:
      return UniqueFd(open("/dev/null", O_RDWR | O_CLOEXEC));
    default:
      return {};
  }
}

void check_ring(const Link& link, const Ring& ring) {
  FUZZ_CHECK(ring.interrupt.valid() && ring.region < link.regions.size());
  FUZZ_CHECK(ring.slots != 0 && (ring.slots & (ring.slots - 1)) == 0 && ring.slots <= 1U << kLog2SlotsMax);
  const std::span<std::byte> bytes = link.regions[ring.region].bytes();
  const auto* const begin = reinterpret_cast<const std::byte*>(ring.head);
  const auto* const end = reinterpret_cast<const std::byte*>(ring.descriptors() + ring.slots);
  FUZZ_CHECK(begin >= bytes.data() && end <= bytes.data() + bytes.size());
  FUZZ_CHECK(reinterpret_cast<std::uintptr_t>(begin) % alignof(RingHead) == 0);
  if (link.client) {
    FUZZ_CHECK(ring.buffers.size() == std::size_t{ring.slots} * link.buffer_bytes);
    FUZZ_CHECK(ring.buffers.data() >= end && ring.buffers.data() + ring.buffers.size() <= bytes.data() + bytes.size());
  }
}

void check_link(const Link& link) {
  FUZZ_CHECK(!link.send.empty() && link.send[0] && !link.receive.empty() && link.receive[0]);
  for (const auto* rings : {&link.send, &link.receive}) {
    FUZZ_CHECK(rings->size() <= kOptions.rings);
    for (const auto& ring : *rings) {
      if (ring) check_ring(link, *ring);
    }
  }
}

void add(Output& out, const Message& message, Comes comes) {
  out.number(static_cast<std::uint8_t>(comes)).number(static_cast<std::uint16_t>(message.type));
  out.number(static_cast<std::uint8_t>(message.bytes.size())).bytes(message.bytes);
}

Comes what_comes(const Message& message) {
  return message.type == Type::kAddRegion ? Comes::kMemory
         : message.type == Type::kAddRing ? Comes::kEvent
                                          : Comes::kNothing;
}

/// What one of two ends of ours hears in a handshake of both.
Seed seed(bool client_hears) {
  Options options = kOptions;
  Handshake server(options);
  options.client = true;
  Handshake client(options);
  Output out;
  out.number(static_cast<std::uint8_t>(client_hears));
  Outgoing next = server.hello();
  for (bool to_client = true;; to_client = !to_client) {
    if (to_client == client_hears) {
      Message message = next.message;
      if (message.type == Type::kAddRegion) {
        AddRegion region = message.as<AddRegion>();
        region.bytes = kRegionBytes;
        message = message_of(Type::kAddRegion, region);
      }
      add(out, message, what_comes(message));
    }
    auto answer = (to_client ? client : server).on_message(next.message, UniqueFd(next.file < 0 ? -1 : dup(next.file)));
    FUZZ_CHECK(answer.has_value());
    if (!*answer) break;
    next = **answer;
  }
  FUZZ_CHECK(client.done() && server.done());
  return {client_hears ? "client" : "server", out.take()};
}

}  // namespace

void run(Bytes bytes) {
  Input input(bytes);
  Options options = kOptions;
  options.client = input.flag();
  Handshake handshake(options);
  while (!input.empty() && !handshake.done()) {
    UniqueFd file =
        descriptor(static_cast<Comes>(input.number<std::uint8_t>() % static_cast<std::uint8_t>(Comes::kCount)));
    Message message{.type = static_cast<Type>(input.number<std::uint16_t>())};
    std::ranges::copy(input.bytes(input.number<std::uint8_t>() % (message.bytes.size() + 1)), message.bytes.begin());
    const auto answer = handshake.on_message(message, std::move(file));
    if (!answer) {
      FUZZ_CHECK(!answer.error().empty() && answer.error().find('\n') == std::string::npos);
      return;
    }
    FUZZ_CHECK(answer->has_value() || handshake.done());
  }
  if (handshake.done()) {
    check_link(*handshake.take());
  }
}

std::vector<Seed> seeds() { return {seed(true), seed(false)}; }

}  // namespace godwit::fuzz
