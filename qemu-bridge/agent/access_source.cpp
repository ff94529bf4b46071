#include "qemu-bridge/agent/access_source.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <ctime>
#include <utility>

namespace godwit::bridge {
namespace {

using dataplane::v1::NoteAccesses;

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::size_t kMessageWords = (128u << 10) / 8;  // as dataplane.proto allows
constexpr std::uint64_t kRangePages = 1u << 18;          // 1 GiB: the module's own step
constexpr std::uint32_t kAddressSpaceShift = 16;         // of KVM's slot ids: 0 is what the guest runs in, 1 is SMM
constexpr std::chrono::milliseconds kReplyTime{2'000};

Duration thread_time() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return {now.tv_sec * 1'000'000'000 + now.tv_nsec};
}

std::expected<Duration, std::string> tell(DataplaneClient& dataplane, NoteAccesses message) {
  dataplane::v1::ToDataplane request;
  *request.mutable_note_accesses() = std::move(message);
  const auto reply = dataplane.call(std::move(request), {}, kReplyTime);
  if (!reply) {
    return std::unexpected(reply.error().text());
  }
  return microseconds(static_cast<std::int64_t>(std::min<std::uint64_t>(reply->note_accesses().cost_us(), 1ULL << 40)));
}

class WritesSource final : public AccessSource {
 public:
  std::expected<Duration, std::string> scan(DataplaneClient& dataplane, const ScannedVm& vm) override {
    NoteAccesses message;
    message.set_vm_uuid(vm.uuid.to_bytes());
    message.set_ownership(vm.ownership);
    message.set_source(dataplane::v1::ACCESS_WRITES);
    message.set_ends(true);
    return tell(dataplane, std::move(message));
  }
};

class ModuleSource final : public AccessSource {
 public:
  ModuleSource(EptScanner scanner, std::vector<MappedRegion> regions)
      : scanner_(std::move(scanner)), regions_(std::move(regions)) {}

  std::expected<Duration, std::string> scan(DataplaneClient& dataplane, const ScannedVm& vm) override {
    const Duration began = thread_time();
    const auto slots = scanner_.slots();
    if (!slots) {
      return failed(slots.error());
    }
    const auto pieces = guest_pieces(*slots, regions_);
    std::vector<std::uint64_t> accessed((regions_.back().first_page + regions_.back().pages + 63) / 64);
    for (const EptRequest& range : scan_ranges(pieces)) {
      const auto found = scanner_.scan(range);
      if (found) {
        translate(pieces, range.first_page, found->accessed, accessed);
      } else if (found.error().failure != EptFailure::kOutsideMemory) {  // memory that has gone meanwhile
        return failed(found.error());
      }
    }
    Duration cost;
    for (NoteAccesses& message : note_messages(vm, accessed)) {
      const auto told = tell(dataplane, std::move(message));
      if (!told) {
        return told;
      }
      cost = Duration{cost.ns + told->ns};
    }
    return Duration{cost.ns + (thread_time() - began).ns};
  }
  [[nodiscard]] bool broken() const override { return broken_; }

 private:
  std::unexpected<std::string> failed(const EptError& error) {
    broken_ = true;
    return std::unexpected(error.text);
  }

  EptScanner scanner_;
  std::vector<MappedRegion> regions_;
  bool broken_ = false;
};

}  // namespace

std::vector<GuestPiece> guest_pieces(std::span<const godwit_ept_slot> slots, std::span<const MappedRegion> regions) {
  std::vector<godwit_ept_slot> ordered;
  std::ranges::copy_if(slots, std::back_inserter(ordered),
                       [](const auto& slot) { return slot.id >> kAddressSpaceShift == 0; });
  std::ranges::sort(ordered, {}, &godwit_ept_slot::start);
  std::vector<GuestPiece> pieces;
  for (const godwit_ept_slot& slot : ordered) {
    GuestPiece piece{slot.start, slot.count, std::nullopt};
    for (const MappedRegion& region : regions) {
      const std::uint64_t offset = (slot.address - region.address) / kPageBytes;
      if (slot.address >= region.address && offset < region.pages && slot.count <= region.pages - offset) {
        piece.first_page = region.first_page + offset;
      }
    }
    pieces.push_back(piece);
  }
  return pieces;
}

std::vector<EptRequest> scan_ranges(std::span<const GuestPiece> pieces) {
  std::vector<EptRequest> ranges;
  for (std::size_t i = 0; i < pieces.size();) {
    std::uint64_t start = (pieces[i].start + 63) / 64 * 64;
    std::uint64_t end = pieces[i].start;
    for (; i < pieces.size() && pieces[i].start == end; ++i) {
      end += pieces[i].count;
    }
    for (; start < end; start += kRangePages) {
      ranges.push_back({.first_page = start, .pages = std::min(kRangePages, end - start), .clear = true});
    }
  }
  return ranges;
}

void translate(std::span<const GuestPiece> pieces, std::uint64_t start, std::span<const std::uint64_t> accessed,
               std::vector<std::uint64_t>& out) {
  auto piece = pieces.begin();
  for (std::size_t i = 0; i < accessed.size(); ++i) {
    for (std::uint64_t word = accessed[i]; word != 0; word &= word - 1) {
      const std::uint64_t page = start + i * 64 + static_cast<unsigned>(std::countr_zero(word));
      while (piece != pieces.end() && page >= piece->start + piece->count) {
        ++piece;
      }
      if (piece == pieces.end()) {
        return;
      }
      if (page >= piece->start && piece->first_page) {
        const std::uint64_t ours = *piece->first_page + (page - piece->start);
        out.at(ours / 64) |= std::uint64_t{1} << ours % 64;
      }
    }
  }
}

std::vector<NoteAccesses> note_messages(const ScannedVm& vm, std::span<const std::uint64_t> accessed) {
  std::vector<NoteAccesses> messages;
  for (std::size_t at = 0; at < accessed.size(); at += kMessageWords) {
    const auto words = accessed.subspan(at, std::min(kMessageWords, accessed.size() - at));
    const bool last = at + words.size() == accessed.size();
    if (!last && std::ranges::all_of(words, [](std::uint64_t word) { return word == 0; })) {
      continue;
    }
    NoteAccesses message;
    message.set_vm_uuid(vm.uuid.to_bytes());
    message.set_ownership(vm.ownership);
    message.set_source(dataplane::v1::ACCESS_MODULE);
    message.set_first_page(at * 64);
    message.set_accessed(words.data(), words.size_bytes());
    message.set_ends(last);
    messages.push_back(std::move(message));
  }
  return messages;
}

std::unique_ptr<AccessSource> make_writes_source() { return std::make_unique<WritesSource>(); }

ChosenSource choose_access_source(pid_t pid, std::span<const MemoryBackend> backends) {
  const auto by_writes = [](std::string reason) { return ChosenSource{make_writes_source(), std::move(reason)}; };
  auto scanner = EptScanner::attach(pid);
  if (!scanner) {
    return by_writes(scanner.error().text);
  }
  const auto ram = discover_ram(pid, backends);
  if (!ram) {
    return by_writes(ram.error().text);
  }
  std::vector<MappedRegion> regions;
  std::uint64_t first_page = 0;
  for (const RamRegion& region : *ram) {
    regions.push_back({region.qemu_address, region.bytes / kPageBytes, first_page});
    first_page += region.bytes / kPageBytes;
  }
  if (regions.empty()) {
    return by_writes("QEMU's RAM is not known yet");
  }
  return {std::make_unique<ModuleSource>(std::move(*scanner), std::move(regions)), ""};
}

}  // namespace godwit::bridge
