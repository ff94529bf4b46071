#include "qemu-bridge/agent/guest_attachment.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "qemu-bridge/agent/fault_ranges.h"
#include "qemu-bridge/attach/inject.h"

namespace godwit::bridge {
namespace {

using dataplane::v1::Error;
using dataplane::v1::Tracker;

/// The tracker to prepare for: what was asked, or the best that this kernel offers.
Tracker tracker_to_prepare(Tracker asked, const dataplane::v1::HelloResult& hello) {
  if (asked != dataplane::v1::TRACKER_AUTO) {
    return asked;
  }
  Tracker best = dataplane::v1::TRACKER_HASHES;
  for (const int offered : hello.trackers()) {
    if (offered != dataplane::v1::TRACKER_AUTO && offered < best) {
      best = static_cast<Tracker>(offered);
    }
  }
  return best;
}

std::expected<UniqueFd, std::string> userfaultfd_of(VmRecord& record, UserfaultUse use) {
  // An armed descriptor carries the visit's history: take it again as long as it can do what is needed.
  if (record.userfaultfd_in_qemu >= 0 && (record.userfaultfd_events || use == UserfaultUse::kTracking)) {
    auto fetched = fetch_userfaultfd(record.process.pid, record.userfaultfd_in_qemu);
    if (fetched) {
      return std::move(*fetched);
    }
    spdlog::warn("userfaultfd {} of QEMU {} cannot be fetched again: {}", record.userfaultfd_in_qemu,
                 record.process.pid, fetched.error().text);
  }
  auto injected = inject_userfaultfd(record.process.pid, use);
  if (!injected) {
    return std::unexpected(injected.error().text);
  }
  record.userfaultfd_in_qemu = injected->number_in_qemu;
  record.userfaultfd_events = use == UserfaultUse::kEvents;
  return std::move(injected->fd);
}

/// One for each range, those of before as long as QEMU has them. A failure leaves in the record what was made.
std::expected<std::vector<UniqueFd>, std::string> fault_descriptors_of(VmRecord& record,
                                                                       std::vector<FaultDescriptor> ranges) {
  std::vector<UniqueFd> fetched;
  if (record.fault_descriptors.empty()) {
    record.fault_descriptors = std::move(ranges);
  }
  for (FaultDescriptor& range : record.fault_descriptors) {
    if (range.in_qemu >= 0) {
      auto fd = fetch_userfaultfd(record.process.pid, range.in_qemu);
      if (!fd) {
        return std::unexpected(fd.error().text);
      }
      fetched.push_back(std::move(*fd));
      continue;
    }
    auto injected = inject_userfaultfd(record.process.pid, UserfaultUse::kEvents);
    if (!injected) {
      record.fault_descriptors.clear();
      return std::unexpected(injected.error().text);
    }
    range.in_qemu = injected->number_in_qemu;
    fetched.push_back(std::move(injected->fd));
  }
  record.userfaultfd_in_qemu = record.fault_descriptors.front().in_qemu;
  record.userfaultfd_events = true;
  return fetched;
}

/// The userfaultfds that tracker and paging need, with their ranges in the request.
std::expected<std::vector<UniqueFd>, std::string> userfaultfds_of(VmRecord& record, Tracker tracker, Paging paging,
                                                                  const std::vector<RamRegion>& regions,
                                                                  dataplane::v1::AttachGuest& request) {
  const bool events = paging.any() || tracker == dataplane::v1::TRACKER_WRITE_PROTECT_EVENTS;
  std::vector<std::uint64_t> region_bytes;
  for (const auto& region : regions) {
    region_bytes.push_back(region.bytes);
  }
  auto ranges = fault_ranges(region_bytes, record.definition.vcpus);
  const bool one_before = record.userfaultfd_in_qemu >= 0 && record.fault_descriptors.empty();
  const bool several = !record.fault_descriptors.empty() || (paging.any() && ranges.size() > 1);
  if (!several || one_before) {
    auto one = userfaultfd_of(record, events ? UserfaultUse::kEvents : UserfaultUse::kTracking);
    if (!one) {
      return std::unexpected(one.error());
    }
    std::vector<UniqueFd> single;
    single.push_back(std::move(*one));
    return single;
  }
  auto fetched = fault_descriptors_of(record, std::move(ranges));
  if (fetched) {
    for (const auto& range : record.fault_descriptors) {
      auto& out = *request.add_fault_ranges();
      out.set_first_page(range.first_page);
      out.set_pages(range.pages);
    }
  }
  return fetched;
}

void fill(dataplane::v1::AttachGuest& request, const VmRecord& record, AttachKind kind) {
  request.set_vm_uuid(record.definition.uuid.to_bytes());
  request.set_image_id(record.image_id.to_bytes());
  request.set_ownership(record.ownership);
  request.set_tracker(record.tracker);
  request.set_kind(kind);
  request.set_epoch(record.epoch);
  request.set_has_balloon(record.has_balloon);
  request.set_qemu_pid(record.process.pid);
  request.set_paging_epoch(record.migration ? record.migration->epoch_base : 0);
}

}  // namespace

std::vector<MemoryBackend> in_order_of(const config::VmDefinition& definition, const QemuFacts& facts) {
  std::vector<MemoryBackend> ordered;
  for (const auto& region : definition.regions) {
    const auto backend = std::ranges::find(facts.backends, region.name, &MemoryBackend::id);
    GW_ASSERT(backend != facts.backends.end());  // compare_with_definition() has passed
    ordered.push_back(*backend);
  }
  return ordered;
}

std::expected<Attachment, Error> attach_guest(DataplaneClient& dataplane, VmRecord& record,
                                              const std::vector<MemoryBackend>& backends, AttachKind kind,
                                              Paging paging) {
  const auto hello = dataplane.hello();
  if (!hello) {
    return std::unexpected(make_error(Error::INTERNAL, "the data plane on this host is down"));
  }
  auto regions = discover_ram(record.process.pid, backends);
  if (!regions) {
    return std::unexpected(make_error(Error::KERNEL, regions.error().text));
  }
  dataplane::v1::ToDataplane request;
  auto& attach = *request.mutable_attach_guest();
  fill(attach, record, kind);
  Attachment attachment;
  std::vector<int> descriptors;
  for (const auto& region : *regions) {
    auto& out = *attach.add_regions();
    out.set_name(region.name);
    out.set_bytes(region.bytes);
    out.set_page_bytes(region.page_bytes);
    out.set_qemu_address(region.qemu_address);
    out.set_ram_path(region.path);
    descriptors.push_back(region.file.get());
    attachment.bytes_total += region.bytes;
  }
  std::vector<UniqueFd> userfaultfds;
  const Tracker tracker = tracker_to_prepare(record.tracker, *hello);
  attach.set_demand_paging(paging.on_demand);
  attach.set_split(paging.evictable);
  if (tracker != dataplane::v1::TRACKER_HASHES || paging.any()) {
    auto got = userfaultfds_of(record, tracker, paging, *regions, attach);
    if (got) {
      userfaultfds = std::move(*got);
      for (const auto& userfaultfd : userfaultfds) {
        descriptors.push_back(userfaultfd.get());
      }
    } else if (paging.any()) {
      return std::unexpected(
          make_error(Error::KERNEL, "no userfaultfd in QEMU that tells of all faults: " + got.error() +
                                        (paging.evictable ? "; such a VM cannot be split" : "; or use mode precopy")));
    } else if (record.tracker != dataplane::v1::TRACKER_AUTO) {
      return std::unexpected(make_error(Error::KERNEL, "no userfaultfd in QEMU: " + got.error()));
    } else {
      spdlog::warn("VM {}: no userfaultfd in QEMU ({}): its writes are found by hashes", record.definition.name,
                   got.error());
    }
  }
  attach.set_has_userfaultfd(!userfaultfds.empty());
  const std::string pagemap_path = "/proc/" + std::to_string(record.process.pid) + "/pagemap";
  const UniqueFd pagemap(::open(pagemap_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (pagemap.valid()) {
    descriptors.push_back(pagemap.get());
  } else if (!userfaultfds.empty()) {
    return std::unexpected(make_error(Error::KERNEL, "cannot open " + pagemap_path + ": " + std::strerror(errno)));
  }
  attach.set_has_pagemap(pagemap.valid());
  auto reply = dataplane.call(std::move(request), descriptors);
  if (!reply) {
    return std::unexpected(reply.error());
  }
  attachment.result = reply->attach_guest();
  return attachment;
}

void take_back_userfaultfd(VmRecord& record) {
  if (record.userfaultfd_in_qemu < 0) {
    return;
  }
  if (auto closed = close_in(record.process.pid, record.userfaultfd_in_qemu); !closed) {
    spdlog::warn("VM {}: {}", record.definition.name, closed.error().text);
  }
  record.userfaultfd_in_qemu = -1;
}

}  // namespace godwit::bridge
