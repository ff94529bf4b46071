#pragma once
// What a memif connection has once it stands: mapped regions and rings. And the handshake that makes it, by messages.
//
// The peer writes the shared memory whenever it likes: everything in it is read once and checked, at each use. It
// cannot take the memory away: regions are sealed against shrinking, or refused. Owner: shared by the control thread,
// which makes it, and each queue, until its lcore has seen that it is over. Failure: the handshake says what is wrong
// with the peer; a link does not fail.

#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/port/memif_protocol.h"

namespace godwit::port::memif {

inline constexpr std::uint8_t kLog2SlotsMax = 14;
inline constexpr std::uint8_t kLog2Slots = 9;  // of the rings that we make: 512
inline constexpr std::size_t kRegionsMax = 16;
inline constexpr std::uint64_t kRegionBytesMax = std::uint64_t{4} << 30;  // offsets have 32 bits

class Region {
 public:
  /// A new one, sealed.
  static std::expected<Region, std::string> make(std::uint64_t bytes);
  /// The peer's. Refused unless it is of that size at least, for good.
  static std::expected<Region, std::string> map(UniqueFd file, std::uint64_t bytes);
  Region(Region&& other) noexcept;
  Region& operator=(Region&&) = delete;
  ~Region();

  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }
  [[nodiscard]] int file() const { return file_.get(); }

 private:
  Region(UniqueFd file, std::span<std::byte> bytes) : file_(std::move(file)), bytes_(bytes) {}
  UniqueFd file_;
  std::span<std::byte> bytes_;
};

struct Ring {
  RingHead* head = nullptr;
  std::uint32_t slots = 0;
  std::span<std::byte> buffers;  // client: where the buffers of its slots are; server: empty, descriptors say it
  UniqueFd interrupt;            // eventfd
  std::uint32_t offset = 0;
  std::uint16_t region = 0;

  [[nodiscard]] Descriptor* descriptors() const { return reinterpret_cast<Descriptor*>(head + 1); }
};

struct Link {
  bool client = false;
  std::uint32_t buffer_bytes = 0;  // client: of each slot
  std::vector<Region> regions;
  std::vector<std::optional<Ring>> send, receive;  // by index
};

struct Options {
  bool client = false;
  std::uint16_t rings = 1;  // each way; of two one may be missing, of more none: each lcore needs its own
  std::uint32_t buffer_bytes = 0;
};

/// To be sent, with a descriptor unless -1, which is the link's.
struct Outgoing {
  Message message;
  int file = -1;
};

class Handshake {
 public:
  explicit Handshake(const Options& options) : options_(options) {}
  /// Server: what to begin with.
  [[nodiscard]] Outgoing hello() const;
  /// The answer to a message, if there is one. After an error nothing may be called; it is what the peer did wrong.
  std::expected<std::optional<Outgoing>, std::string> on_message(const Message& message, UniqueFd file);
  /// Client, after an error: the peer, whose greeting may promise more, has one ring each way.
  [[nodiscard]] bool peer_has_one_ring() const { return one_ring_; }
  /// It stands; the answer must still be sent.
  [[nodiscard]] bool done() const { return done_; }
  /// Once done.
  [[nodiscard]] std::shared_ptr<Link> take() { return std::move(link_); }

 private:
  using Answer = std::expected<std::optional<Outgoing>, std::string>;
  // client
  Answer on_disconnect(const Disconnect& disconnect);
  Answer on_hello(const Hello& hello);
  Answer next_request();
  std::expected<void, std::string> make_memory(std::uint16_t send, std::uint16_t receive, std::uint8_t log2_slots);
  [[nodiscard]] Outgoing add_ring(std::size_t index, bool to_server) const;
  // server
  Answer on_init(const Init& init);
  Answer on_region(const AddRegion& request, UniqueFd file);
  Answer on_ring(const AddRing& request, UniqueFd file);
  Answer on_connect();

  const Options options_;
  std::shared_ptr<Link> link_ = std::make_shared<Link>();
  bool begun_ = false;         // server: Init has come; client: Hello has
  std::size_t requested_ = 0;  // client: requests that follow Init
  bool one_ring_ = false;
  bool done_ = false;
};

}  // namespace godwit::port::memif
