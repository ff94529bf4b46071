#include "dataplane/daemon/service.h"

#include <fcntl.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "dataplane/daemon/guest_paging.h"

namespace godwit::daemon {
namespace {

constexpr std::uint32_t kApiVersion = 1;

ApiError bad_request(std::string text) { return {api::Error::BAD_REQUEST, std::move(text)}; }

ApiError stale(const Id128& vm, std::uint64_t given, std::uint64_t known) {
  return {api::Error::STALE_OWNERSHIP, "VM " + vm.text() + ": ownership " + std::to_string(given) + " was given, " +
                                           std::to_string(known) + " is known here"};
}

/// A bridge that was restarted attaches again, as CONTINUING, what is attached: the same guest, whatever the kind.
std::string identity_of(api::AttachGuest request) {
  request.clear_kind();
  request.clear_epoch();
  request.clear_demand_paging();
  request.clear_paging_epoch();
  return request.SerializeAsString();
}

UniqueFd open_process(std::int32_t pid) { return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))); }

bool takes_descriptors(const api::ToDataplane& request) {
  return request.has_attach_guest() || request.has_split_guest();
}

}  // namespace

void wipe_secret(std::string& secret) {
  ::explicit_bzero(secret.data(), secret.size());
  secret.clear();
}

api::Reply refusal(const ApiError& error) {
  api::Reply reply;
  reply.mutable_error()->set_code(error.code);
  reply.mutable_error()->set_text(printable(error.text, kTextBytesMax));
  return reply;
}

Service::Service(ServiceOptions options, Images& images, Inbox& control, DataPath& data_path,
                 std::function<void(const api::Event&)> emit, std::function<void(int)> watch)
    : options_(std::move(options)),
      images_(images),
      control_(control),
      data_path_(data_path),
      emit_(std::move(emit)),
      watch_(std::move(watch)),
      disk_(std::make_unique<Worker>()),
      stores_(options_, control_, data_path_, *disk_, flow_ids_, emit_) {}

Service::~Service() = default;

bool Service::runs(const UniqueFd& process) {
  pollfd exited{process.get(), POLLIN, 0};
  return process.valid() && poll(&exited, 1, 0) == 0;
}

void Service::handle(api::ToDataplane request, std::vector<UniqueFd> descriptors, Respond respond) {
  using Request = api::ToDataplane;
  if (options_.lender != nullptr) {
    options_.lender->end_loans();
  }
  if (!descriptors.empty() && !takes_descriptors(request)) {
    respond(refusal(bad_request("request " + std::to_string(request.id()) +
                                " came with descriptors, which only AttachGuest and SplitGuest take")));
    return;
  }
  switch (request.request_case()) {
    case Request::kHello:
      return hello(request.hello(), respond);
    case Request::kAttachGuest:
      return attach_guest(request.attach_guest(), std::move(descriptors), respond);
    case Request::kDetachGuest:
      return detach_guest(request.detach_guest(), respond);
    case Request::kPrepareMigration:
      return after_scan(request.prepare_migration().vm_uuid(),
                        [this, request, respond] { prepare(request.prepare_migration(), respond); });
    case Request::kStartMigration:
      return start(*request.mutable_start_migration(), respond);
    case Request::kGuestStopped:
      return guest_stopped(request.guest_stopped(), respond);
    case Request::kDeviceState:
      return device_state(request.device_state().migration_id(),
                          std::move(*request.mutable_device_state()->mutable_data()), false, respond);
    case Request::kDeviceStateEnd:
      return device_state(request.device_state_end().migration_id(), {}, true, respond);
    case Request::kFinishMigration:
      return finish(request.finish_migration(), respond);
    case Request::kCancelMigration:
      return cancel(request.cancel_migration(), respond);
    case Request::kListImages:
      return list_images(respond);
    case Request::kDropImage:
      return drop_image(request.drop_image(), respond);
    case Request::kMakeRoom:
      return make_room(request.make_room(), respond);
    case Request::kGetStatus:
      return get_status(respond);
    case Request::kSwitchToPostcopy:
      return switch_to_postcopy(request.switch_to_postcopy(), respond);
    case Request::kCommitMigration:
      return commit(request.commit_migration(), respond);
    case Request::kPrepareResume:
      return after_scan(request.prepare_resume().vm_uuid(),
                        [this, request, respond] { prepare_resume(request.prepare_resume(), respond); });
    case Request::kResumeMigration:
      return resume(*request.mutable_resume_migration(), respond);
    case Request::kNoteAccesses:
      return note_accesses(request.note_accesses(), respond);
    case Request::kGetHeat:
      return get_heat(request.get_heat(), respond);
    case Request::kSplitGuest:
      return split_guest(request.split_guest(), std::move(descriptors), respond);
    case Request::kPrepareSub:
      return prepare_sub(request.prepare_sub(), respond);
    case Request::kStartSub:
      return start_sub(*request.mutable_start_sub(), respond);
    case Request::kPrepareStore:
      return stores_.prepare(request.prepare_store(), respond);
    case Request::kStartStore:
      return stores_.start(*request.mutable_start_store(), respond);
    case Request::kDropStore:
      return stores_.drop(request.drop_store(), respond);
    case Request::REQUEST_NOT_SET:
      break;
  }
  respond(
      refusal(bad_request("request " + std::to_string(request.id()) + " asks for nothing that this version knows")));
}

void Service::hello(const api::Hello& request, const Respond& respond) {
  if (request.version() != kApiVersion) {
    respond(refusal(bad_request("Hello: version " + std::to_string(request.version()) + ", this data plane speaks " +
                                std::to_string(kApiVersion) + "; install bridge and data plane of one release")));
    return;
  }
  api::Reply reply;
  api::HelloResult& result = *reply.mutable_hello();
  result.set_version(kApiVersion);
  result.set_boot_id(options_.daemon_boot_id.to_bytes());
  result.set_address(options_.address);
  result.set_mtu_bytes(options_.mtu_bytes);
  result.set_memory_budget_bytes(images_.store.budget_bytes());
  for (const memory::TrackerKind kind : memory::trackers_offered()) {
    result.add_trackers(to_api(kind));
  }
  result.set_memory_dir(options_.memory_dir);
  const std::string no_postcopy = postcopy_refusal(options_.missing_dir);
  result.set_postcopy(no_postcopy.empty());
  result.set_postcopy_refusal(printable(no_postcopy, kTextBytesMax));
  respond(std::move(reply));
}

void Service::attach_guest(const api::AttachGuest& request, std::vector<UniqueFd> descriptors, const Respond& respond) {
  if (const auto vm = parse_id(request.vm_uuid(), "AttachGuest: vm_uuid"); vm && guests_.contains(*vm)) {
    const Entry& former = guests_.at(*vm);
    if (former.lost && former.migration.is_nil() && former.state == Entry::State::kReady) {
      auto kept = std::make_shared<std::vector<UniqueFd>>(std::move(descriptors));
      forget_guest(*vm, [this, request, kept, respond] { attach_guest(request, std::move(*kept), respond); });
      return;
    }
  }
  auto attachment = parse_attach(request, std::move(descriptors));
  if (!attachment) {
    respond(refusal(attachment.error()));
    return;
  }
  const Id128 vm = attachment->vm_uuid;
  std::string serialised = identity_of(request);
  if (const auto found = guests_.find(vm); found != guests_.end()) {
    Entry& entry = found->second;
    if (!entry.when_gone.empty()) {
      respond(refusal(bad_request("AttachGuest: VM " + vm.text() + " is being detached; try again")));
      return;
    }
    if (entry.request != serialised) {
      respond(refusal(bad_request("AttachGuest: VM " + vm.text() +
                                  " is attached with other memory or another QEMU; detach it first")));
      return;
    }
    if (entry.state == Entry::State::kAttaching) {
      entry.waiting.push_back(respond);
      return;
    }
    api::Reply reply;
    *reply.mutable_attach_guest() = entry.result;
    respond(std::move(reply));
    return;
  }
  if (!attachment->tracker) {
    attachment->tracker = options_.tracker;
  }
  Entry entry;
  entry.request = std::move(serialised);
  entry.waiting.push_back(respond);
  entry.ownership = attachment->ownership;
  entry.qemu_pid = attachment->qemu_pid;
  for (const memory::RegionFile& file : attachment->files) {
    entry.bytes_total += file.bytes;
  }
  entry.process = open_process(attachment->qemu_pid);
  if (!entry.process.valid()) {
    respond(refusal(
        bad_request("AttachGuest: qemu_pid " + std::to_string(attachment->qemu_pid) + ": " + std::strerror(errno))));
    return;
  }
  entry.worker = std::make_unique<Worker>();
  Worker& worker = *entry.worker;
  const AttachContext context{
      options_.run_dir, options_.host_boot_id, &images_,
      guest_bytes(),    options_.missing_dir,  static_cast<std::uint32_t>(data_path_.lcore_count())};
  guests_.emplace(vm, std::move(entry));
  struct Job {
    Attachment attachment;
    std::expected<std::unique_ptr<Guest>, ApiError> result = nullptr;
  };
  auto job = std::make_shared<Job>();
  job->attachment = std::move(*attachment);
  worker.submit([job, context] { job->result = attach(std::move(job->attachment), context); }, control_,
                [this, job, vm] { attached(vm, std::move(job->result)); });
}

void Service::attached(const Id128& vm, std::expected<std::unique_ptr<Guest>, ApiError> guest) {
  Entry& entry = guests_.at(vm);  // nothing forgets a guest that is being attached
  const std::vector<Respond> waiting = std::move(entry.waiting);
  api::Reply reply;
  if (!guest) {
    spdlog::warn("VM {}: not attached: {}", vm.text(), printable(guest.error().text));
    reply = refusal(guest.error());
    gone(vm);
  } else if (entry.guest = std::move(*guest); !entry.when_gone.empty()) {
    reply = refusal(bad_request("AttachGuest: VM " + vm.text() + " was detached meanwhile"));
    forget_guest(vm, nullptr);
  } else {
    attach_ended(vm, entry);
    *reply.mutable_attach_guest() = entry.result;
  }
  publish_guests();
  for (const Respond& respond : waiting) {
    respond(reply);
  }
}

void Service::attach_ended(const Id128& vm, Entry& entry) {
  give_accesses_back(vm, entry);
  const Guest& guest = *entry.guest;
  entry.state = Entry::State::kReady;
  entry.result.set_tracker(to_api(guest.memory->tracker()));
  entry.result.set_tracker_reason(printable(guest.tracker_reason, kTextBytesMax));
  entry.result.set_history_lost(!guest.history_lost.empty());
  entry.result.set_history_reason(printable(guest.history_lost, kTextBytesMax));
  if (guest.paging) {
    entry.result.set_pages_missing(guest.paging->missing_count());
    watch_paging(vm, entry);
  } else if (guest.split) {
    entry.result.set_pages_missing(guest.split->missing_count());
  }
  spdlog::info("VM {}: attached, {} pages, tracker {} ({}){}", vm.text(), guest.memory->page_count(),
               memory::name_of(guest.memory->tracker()), guest.tracker_reason,
               guest.history_lost.empty() ? "" : ", history lost: " + guest.history_lost);
  watch_(entry.process.get());
}

std::expected<Service::Entry*, ApiError> Service::find_guest(const Id128& vm, std::uint64_t ownership) {
  const auto found = guests_.find(vm);
  if (found == guests_.end() || found->second.state != Entry::State::kReady) {
    return std::unexpected(ApiError{api::Error::NO_SUCH_VM, "VM " + vm.text() + " is not attached"});
  }
  if (const std::uint64_t known = found->second.guest->ownership; ownership != known) {
    return std::unexpected(stale(vm, ownership, known));
  }
  return &found->second;
}

void Service::detach_guest(const api::DetachGuest& request, const Respond& respond) {
  const auto vm = parse_id(request.vm_uuid(), "DetachGuest: vm_uuid");
  if (!vm) {
    respond(refusal(vm.error()));
    return;
  }
  const auto found = guests_.find(*vm);
  if (found == guests_.end()) {
    respond({});  // asked again
    return;
  }
  Entry& entry = found->second;
  const std::uint64_t known = entry.guest ? entry.guest->ownership : entry.ownership;
  if (request.ownership() != known) {
    respond(refusal(stale(*vm, request.ownership(), known)));
    return;
  }
  if (!entry.migration.is_nil()) {
    respond(refusal(bad_request("DetachGuest: VM " + vm->text() + " is in migration " + entry.migration.text() +
                                "; finish that first")));
    return;
  }
  if (const std::uint64_t missing = entry.guest ? entry.guest->pages_missing() : 0; missing != 0 && entry.qemu_runs()) {
    // Without us its QEMU would read zeros there.
    respond(refusal(bad_request("DetachGuest: VM " + vm->text() + " runs and lacks " + std::to_string(missing) +
                                " pages; end its QEMU first")));
    return;
  }
  const auto then = [respond] { respond({}); };
  if (entry.state == Entry::State::kReady) {
    return forget_guest(*vm, then);
  }
  entry.when_gone.push_back(then);  // it is on its way in, and goes then; or on its way out
}

void Service::forget_guest(const Id128& vm, std::function<void()> then) {
  Entry& entry = guests_.at(vm);
  entry.state = Entry::State::kLeaving;
  entry.ownership = entry.guest->ownership;
  if (then) {
    entry.when_gone.push_back(std::move(then));
  }
  end_paging(vm, [this, vm] { end_split(vm, [this, vm] { close_guest(vm); }); });
}

void Service::close_guest(const Id128& vm) {
  Entry& entry = guests_.at(vm);
  // Unmapping a large guest takes a while, and a job may still run: both in the guest's own thread.
  auto guest = std::make_shared<std::unique_ptr<Guest>>(std::move(entry.guest));
  auto kept = std::make_shared<KeptAccesses>();
  kept->process = UniqueFd(::fcntl(entry.process.get(), F_DUPFD_CLOEXEC, 0));
  kept->qemu_pid = entry.qemu_pid;
  entry.worker->submit(
      [guest, vm, kept] {
        kept->history = std::move((*guest)->accesses);
        kept->source = (*guest)->access_source;
        kept->accessed_pages = (*guest)->accessed_pages;
        if (auto disarmed = (*guest)->memory->disarm(); !disarmed) {
          spdlog::warn("VM {}: its QEMU may wait for a data plane: {}", vm.text(), printable(disarmed.error().text));
        }
        guest->reset();
      },
      control_,
      [this, vm, kept] {
        keep_accesses(vm, std::move(*kept));
        TrackingState::remove(options_.run_dir, vm);
        LivePaging::remove_file(options_.missing_dir, vm);
        LiveSplit::remove_files(options_.missing_dir, vm);
        spdlog::info("VM {}: forgotten", vm.text());
        gone(vm);
      });
}

void Service::gone(const Id128& vm) {
  const std::vector<std::function<void()>> when_gone = std::move(guests_.at(vm).when_gone);
  guests_.erase(vm);
  publish_guests();
  for (const auto& then : when_gone) {
    then();
  }
}

void Service::on_process_exit(int pidfd) {
  for (auto& [vm, entry] : guests_) {
    if (entry.process.get() != pidfd || entry.lost) {
      continue;
    }
    entry.lost = true;
    const auto session = sessions_.find(entry.migration);
    const bool outlived = session != sessions_.end() && session->second->outlives_qemu();
    spdlog::log(outlived ? spdlog::level::info : spdlog::level::warn, "VM {}: its QEMU has exited{}", vm.text(),
                outlived ? ", and its memory serves" : "");
    if (outlived && session->second->committed) {
      continue;  // as it was told
    }
    api::Event event;
    event.mutable_guest_lost()->set_vm_uuid(vm.to_bytes());
    event.mutable_guest_lost()->set_reason("QEMU has exited");
    emit_(event);
    if (!entry.migration.is_nil() && !outlived) {
      api::CancelMigration request;
      request.set_migration_id(entry.migration.to_bytes());
      request.set_reason("QEMU has exited");
      cancel(request, [](const api::Reply&) {});
    }
  }
}

std::uint64_t Service::guest_bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& [vm, entry] : guests_) {
    bytes += entry.state != Entry::State::kLeaving ? entry.bytes_total : 0;
  }
  return bytes;
}

void Service::publish_guests() {
  std::vector<GuestFigures> figures;
  for (const auto& [vm, entry] : guests_) {
    if (entry.state == Entry::State::kReady) {
      figures.push_back({.vm_uuid = vm,
                         .tracker = std::string(memory::name_of(entry.guest->memory->tracker())),
                         .bytes_total = entry.guest->bytes_total,
                         .ownership = entry.guest->ownership,
                         .migration = entry.migration,
                         .access_scans = entry.access_scans,
                         .accessed_pages = entry.accessed_pages,
                         .paging = entry.guest->paging});
    }
  }
  figures_.set_guests(std::move(figures));
}

void Service::get_status(const Respond& respond) {
  api::Reply reply;
  reply.mutable_status();
  for (const auto& [vm, entry] : guests_) {
    const auto session = sessions_.find(entry.migration);
    const bool serves =
        session != sessions_.end() && session->second->committed && session->second->role == api::ROLE_SOURCE;
    if (entry.state == Entry::State::kLeaving || serves) {
      continue;
    }
    api::GuestStatus& guest = *reply.mutable_status()->add_guests();
    guest.set_vm_uuid(vm.to_bytes());
    guest.set_qemu_pid(entry.qemu_pid);
    if (entry.state == Entry::State::kAttaching) {
      guest.set_ownership(entry.ownership);
      guest.set_attaching(true);
      continue;
    }
    guest.set_image_id(entry.guest->image_id.to_bytes());
    guest.set_ownership(entry.guest->ownership);
    guest.set_tracker(entry.result.tracker());
    if (session != sessions_.end()) {
      guest.set_migration_id(entry.migration.to_bytes());
      guest.set_role(session->second->role);
    }
  }
  for (const auto& [id, session] : sessions_) {
    if (session->committed && !session->securing) {
      *reply.mutable_status()->add_paging() = session->paging_status();
    }
  }
  for (const auto& [vm, split] : splits_) {
    const auto guest = guests_.find(vm);
    if (guest != guests_.end() && guest->second.guest && guest->second.guest->split &&
        guest->second.guest->split->begun()) {
      fill_status(vm, *reply.mutable_status()->add_splits());
    }
  }
  stores_.add_status(*reply.mutable_status());
  respond(std::move(reply));
}

}  // namespace godwit::daemon
