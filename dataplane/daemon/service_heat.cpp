// The requests about which pages of a guest are hot. All that takes long runs on the guest's worker.

#include <utility>

#include "dataplane/daemon/guest_heat.h"
#include "dataplane/daemon/service.h"

namespace godwit::daemon {
namespace {

ApiError bad_request(std::string text) { return {api::Error::BAD_REQUEST, std::move(text)}; }

}  // namespace

void Service::keep_accesses(const Id128& vm, KeptAccesses kept) {
  kept_accesses_[vm] = std::move(kept);
  std::erase_if(kept_accesses_, [](const auto& each) { return !runs(each.second.process); });
}

/// To the same QEMU's guest, if they are there.
void Service::give_accesses_back(const Id128& vm, Entry& entry) {
  const auto kept = kept_accesses_.extract(vm);
  if (kept.empty() || !runs(kept.mapped().process) || kept.mapped().qemu_pid != entry.qemu_pid ||
      kept.mapped().history.page_count() != entry.guest->memory->page_count()) {
    return;
  }
  entry.guest->accesses = std::move(kept.mapped().history);  // no job of it has begun
  entry.guest->access_source = kept.mapped().source;
  entry.guest->accessed_pages = kept.mapped().accessed_pages;
  entry.access_scans = entry.guest->accesses.scans();
  entry.accessed_pages = entry.guest->accessed_pages;
}

void Service::after_scan(const std::string& vm_uuid, std::function<void()> then) {
  const auto vm = Id128::from_bytes(vm_uuid);
  const auto found = vm ? guests_.find(*vm) : guests_.end();
  if (found != guests_.end() && found->second.scanning) {
    found->second.after_scan.push_back(std::move(then));
  } else {
    then();
  }
}

std::optional<ApiError> Service::refuse_scan(const Accesses& accesses, const Entry& entry) const {
  const std::string vm = "NoteAccesses: VM " + accesses.vm_uuid.text();
  const Guest& guest = *entry.guest;
  if (!entry.migration.is_nil() || guest.paging || guest.kind == api::AttachGuest::ARRIVING || entry.lost) {
    return bad_request(vm + " is in a migration, or does not run here");
  }
  if (const auto split = splits_.find(accesses.vm_uuid);
      (guest.split && accesses.source == api::ACCESS_WRITES) || (split != splits_.end() && split->second.busy)) {
    return bad_request(vm + " is split: what the tracker knows goes with the pages that come and go");
  }
  if (entry.scanning) {
    return bad_request(vm + " is being scanned");
  }
  if (!fits(accesses, guest.memory->page_count())) {
    return bad_request(vm + " has " + std::to_string(guest.memory->page_count()) + " pages, fewer than are named");
  }
  if (const std::string why = writes_refusal(guest); accesses.source == api::ACCESS_WRITES && !why.empty()) {
    return bad_request(vm + ": " + why);
  }
  return std::nullopt;
}

void Service::note_accesses(const api::NoteAccesses& request, const Respond& respond) {
  auto accesses = parse_accesses(request);
  if (!accesses) {
    return respond(refusal(accesses.error()));
  }
  auto entry = find_guest(accesses->vm_uuid, accesses->ownership);
  if (!entry) {
    return respond(refusal(entry.error()));
  }
  if (const auto refused = refuse_scan(*accesses, **entry)) {
    return respond(refusal(*refused));
  }
  (*entry)->scanning = true;
  struct Scan {
    Accesses accesses;
    std::shared_ptr<LiveSplit> split;  // a scan tells its evictor too
    std::expected<api::NoteAccessesResult, ApiError> result;
  };
  auto scan = std::make_shared<Scan>(Scan{std::move(*accesses), (*entry)->guest->split, {}});
  (*entry)->worker->submit(
      [scan, guest = (*entry)->guest.get()] {
        scan->result = daemon::note_accesses(*guest, scan->accesses, scan->split.get());
      },
      control_,
      [this, scan, respond] {
        Entry& scanned = guests_.at(scan->accesses.vm_uuid);  // who forgets it waits for its worker
        scanned.scanning = false;
        if (scan->result && scan->accesses.ends) {
          ++scanned.access_scans;
          scanned.accessed_pages = scan->result->pages();
          publish_guests();
        }
        api::Reply reply;
        if (scan->result) {
          *reply.mutable_note_accesses() = *scan->result;
        } else {
          reply = refusal(scan->result.error());
        }
        const auto waiting = std::exchange(scanned.after_scan, {});
        respond(std::move(reply));
        for (const auto& then : waiting) {
          then();
        }
      });
}

void Service::get_heat(const api::GetHeat& request, const Respond& respond) {
  const auto query = parse_heat_query(request);
  if (!query) {
    return respond(refusal(query.error()));
  }
  const auto found = guests_.find(query->vm_uuid);
  if (found == guests_.end() || found->second.state != Entry::State::kReady) {
    return respond(refusal({api::Error::NO_SUCH_VM, "VM " + query->vm_uuid.text() + " is not attached"}));
  }
  auto reply = std::make_shared<api::Reply>();
  found->second.worker->submit([reply, guest = found->second.guest.get(),
                                cells = query->cells] { *reply->mutable_heat() = heat_map(*guest, cells); },
                               control_, [reply, respond] { respond(std::move(*reply)); });
}

}  // namespace godwit::daemon
