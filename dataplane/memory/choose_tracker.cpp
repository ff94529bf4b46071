#include <fcntl.h>

#include <optional>

#include "dataplane/memory/event_tracker.h"
#include "dataplane/memory/hash_tracker.h"
#include "dataplane/memory/kernel_abi.h"
#include "dataplane/memory/pagemap_tracker.h"
#include "dataplane/memory/written_tracker.h"

namespace godwit::memory {
namespace {

constexpr std::uint64_t kScanFeatures =
    abi::kFeatureWpFaults | abi::kFeatureWpHugeAndShmem | abi::kFeatureWpUnpopulated | abi::kFeatureWpAsync;
constexpr std::uint64_t kPagingFeatures = abi::kFeatureMissingShmem | abi::kFeatureMissingHuge;
constexpr std::uint64_t kEventFeatures = abi::kFeatureWpFaults | abi::kFeatureWpHugeAndShmem;

/// What a tracker could not be: one clause, empty if it can.
struct Obstacles {
  std::string scan;
  std::string events;
};

Obstacles find_obstacles(const TrackerRequest& request, std::uint64_t offered, std::uint64_t inherited, bool can_scan) {
  Obstacles obstacles;
  if (!request.userfaultfd.valid() && request.userfaultfds_by_range.empty()) {
    obstacles.scan = obstacles.events = "no userfaultfd of QEMU was given";
    return obstacles;
  }
  if ((kScanFeatures & ~offered) != 0) {
    obstacles.scan = "this kernel's userfaultfd has no asynchronous write protection (Linux 6.7)";
  } else if (!request.pagemap.valid()) {
    obstacles.scan = "no pagemap of QEMU was given";
  } else if (!can_scan) {
    obstacles.scan = "this kernel has no PAGEMAP_SCAN (Linux 6.7)";
  }
  if ((kEventFeatures & ~offered) != 0) {
    obstacles.events = "this kernel's userfaultfd cannot write-protect shared memory (Linux 5.19)";
  }
  if (inherited != 0) {
    // What a former data plane has set up cannot be changed.
    const bool is_async = (inherited & abi::kFeatureWpAsync) != 0;
    (is_async ? obstacles.events : obstacles.scan) = "the userfaultfd was set up for the other kind before";
  }
  return obstacles;
}

std::expected<ChosenTracker, Error> make(TrackerKind kind, TrackerRequest request, const std::string& reason) {
  const bool scan = kind == TrackerKind::kPagemapScan;
  const bool hashes = kind == TrackerKind::kHashes;
  const std::uint64_t features = (hashes ? kPagingFeatures
                                  : scan ? kScanFeatures
                                         : kEventFeatures) |
                                 (request.has_balloon ? abi::kFeatureEventRemove : 0);
  std::vector<UserfaultPart> parts = std::move(request.userfaultfds_by_range);
  if (request.userfaultfd.valid()) {
    parts.push_back({std::move(request.userfaultfd), {}});
  }
  auto userfaults = UserfaultSet::adopt(std::move(parts), features);
  if (hashes) {
    // Any that cannot be used is missed by demand paging only, which says so.
    return ChosenTracker{std::make_unique<HashTracker>(request, userfaults.value_or(nullptr)), reason};
  }
  if (!userfaults) {
    return std::unexpected(userfaults.error());
  }
  if (scan) {
    Pagemap pagemap(std::move(request.pagemap));
    return ChosenTracker{std::make_unique<PagemapTracker>(request, std::move(*userfaults), std::move(pagemap)), reason};
  }
  std::optional<Pagemap> pagemap;
  if (request.pagemap.valid()) {
    pagemap.emplace(std::move(request.pagemap));
  }
  return ChosenTracker{std::make_unique<EventTracker>(request, std::move(*userfaults), std::move(pagemap)), reason};
}

bool kernel_can_scan() {
  const Pagemap own(UniqueFd(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)));
  return own.can_scan();
}

}  // namespace

std::string_view name_of(TrackerKind kind) {
  switch (kind) {
    case TrackerKind::kPagemapScan:
      return "pagemap-scan";
    case TrackerKind::kWriteProtectEvents:
      return "write-protect-events";
    case TrackerKind::kHashes:
      return "hashes";
  }
  return "unknown";
}

std::expected<ChosenTracker, Error> choose_tracker(TrackerRequest request, const TrackerKind* forced) {
  GW_ASSERT(request.ram != nullptr);
  if (!request.hashes) {
    request.hashes = std::make_shared<KnownHashes>(request.ram->page_count());
  }
  GW_ASSERT(request.hashes->size() == request.ram->page_count());
  std::uint64_t inherited = 0;
  // A former data plane has set up all of them alike; the last one speaks for all, and adopting them checks each.
  std::vector<int> descriptors;
  for (const UserfaultPart& part : request.userfaultfds_by_range) {
    descriptors.push_back(part.fd.get());
  }
  if (request.userfaultfd.valid()) {
    descriptors.push_back(request.userfaultfd.get());
  }
  for (const int descriptor : descriptors) {
    const auto features = Userfault::features_of(descriptor);
    if (!features) {
      return std::unexpected(features.error());
    }
    inherited = *features;
  }
  // A refusal here (seccomp, no support) is no error: hashes need nothing.
  const std::uint64_t offered = inherited != 0 ? inherited : Userfault::kernel_features().value_or(0);
  const Obstacles obstacles = find_obstacles(request, offered, inherited, kernel_can_scan());
  const auto obstacle_of = [&](TrackerKind kind) {
    return kind == TrackerKind::kPagemapScan          ? obstacles.scan
           : kind == TrackerKind::kWriteProtectEvents ? obstacles.events
                                                      : std::string{};
  };
  if (forced != nullptr) {
    const std::string obstacle = obstacle_of(*forced);
    if (!obstacle.empty()) {
      return std::unexpected(Error{ErrorCode::kUnsupported,
                                   "tracker '" + std::string(name_of(*forced)) + "' was asked for, but " + obstacle});
    }
    return make(*forced, std::move(request), "asked for");
  }
  if (obstacles.scan.empty()) {
    return make(TrackerKind::kPagemapScan, std::move(request), "best there is, and this kernel has it");
  }
  if (obstacles.events.empty()) {
    return make(TrackerKind::kWriteProtectEvents, std::move(request), "no pagemap-scan: " + obstacles.scan);
  }
  return make(TrackerKind::kHashes, std::move(request),
              "no pagemap-scan: " + obstacles.scan + "; no write-protect-events: " + obstacles.events);
}

std::vector<TrackerKind> trackers_offered() {
  std::vector<TrackerKind> kinds;
  const std::uint64_t offered = Userfault::kernel_features().value_or(0);
  if ((kScanFeatures & ~offered) == 0 && kernel_can_scan()) {
    kinds.push_back(TrackerKind::kPagemapScan);
  }
  if ((kEventFeatures & ~offered) == 0) {
    kinds.push_back(TrackerKind::kWriteProtectEvents);
  }
  kinds.push_back(TrackerKind::kHashes);
  return kinds;
}

}  // namespace godwit::memory
