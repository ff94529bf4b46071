// Vm's part as the main host of a split VM: its data plane keeps the guest within a budget, and page stores of sub
// hosts hold the rest.
//
// What nobody may forget, and who remembers it, whoever is killed:
//   that it is split, its stores      | the journal, before the data plane hears of it
//   where each page is                | the data plane's file, and the stores
//   pages between punch and read      | the pin pipe: a FIFO in the VM's run directory that QEMU itself keeps open
//   the userfaultfds                  | QEMU; fetched again with each attachment
//   that it will be split here        | the journal of a destination, from PrepareDestination on; nobody is told of it,
//   and
//                                     | the data plane neither, before the commit. With that the source forgets all of
//                                     this
// A restarted data plane is given guest, pipe and stores again by reattach(); the control plane sees that the flows are
// gone, and begins them anew.
#include <fcntl.h>
#include <linux/magic.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "qemu-bridge/agent/definition.h"
#include "qemu-bridge/agent/vm.h"

namespace godwit::bridge {

using controlplane::v1::AgentReply;
using dataplane::v1::Error;

namespace {

constexpr const char* kPinName = "godwit-pin";
constexpr unsigned kStalledBeatsMax = 10;

std::unexpected<Error> bad(std::string text) {
  return std::unexpected(make_error(Error::BAD_REQUEST, std::move(text)));
}

std::expected<SplitRecord, Error> record_of(const controlplane::v1::SplitGuest& command) {
  SplitRecord record{.budget_bytes = command.budget_bytes(), .subs = {}, .gather = command.gather()};
  for (const auto& sub : command.subs()) {
    const auto id = Id128::from_bytes(sub.store_id());
    if (!id || id->is_nil()) {
      return bad("SplitGuest: a store_id is not 16 bytes other than all zero");
    }
    record.subs.push_back({*id, sub.number(), printable(sub.host()), sub.drain()});
  }
  return record;
}

}  // namespace

void Vm::split_guest(const controlplane::v1::SplitGuest& command, Reply reply) {
  run_command([this, command] { return do_split_guest(command); }, std::move(reply));
}

void Vm::end_split(const controlplane::v1::EndSplit& command, Reply reply) {
  run_command([this, command] { return do_end_split(command); }, std::move(reply));
}

void Vm::prepare_sub(const controlplane::v1::PrepareSub& command, Reply reply) {
  dataplane::v1::ToDataplane request;
  auto& prepare = *request.mutable_prepare_sub();
  prepare.set_vm_uuid(command.vm_uuid());
  prepare.set_ownership(command.ownership());
  prepare.set_store_id(command.store_id());
  prepare.set_encryption(command.encryption());
  run_command([this, request = std::move(request)] { return call_for_sub(request); }, std::move(reply));
}

void Vm::start_sub(const controlplane::v1::StartSub& command, Reply reply) {
  dataplane::v1::ToDataplane request;
  auto& start = *request.mutable_start_sub();
  start.set_vm_uuid(command.vm_uuid());
  start.set_store_id(command.store_id());
  *start.mutable_peer() = command.peer();
  start.set_secret(command.secret());
  run_command([this, request = std::move(request)] { return call_for_sub(request); }, std::move(reply));
}

AgentResult Vm::call_for_sub(dataplane::v1::ToDataplane request) {
  if (!record_.split || record_.split->gathered || arrives()) {
    return bad("this VM is not split here");
  }
  auto reply = services_.dataplane.call(std::move(request));
  if (!reply) {
    return std::unexpected(reply.error());
  }
  AgentReply answer;
  if (reply->has_prepare_sub()) {
    *answer.mutable_flow_prepared()->mutable_endpoint() = reply->prepare_sub().endpoint();
  }
  services_.on_change();
  return answer;
}

// ---- before anything is touched -------------------------------------------------------------------------------------

std::expected<void, Error> Vm::check_can_split() {
  if (!qmp_) {
    return std::unexpected(make_error(Error::INTERNAL, "QEMU's monitor is not connected"));
  }
  if (record_.migration) {
    return bad("the VM is in a migration: wait until it has ended");
  }
  if (record_.tracker == dataplane::v1::TRACKER_HASHES || attached_.tracker() == dataplane::v1::TRACKER_HASHES) {
    return bad("the VM is tracked by hashes, which would take evicted pages for written ones: it cannot be split");
  }
  if (auto movable = check_still_movable(*qmp_, {.has_balloon = record_.has_balloon, .by_hashes = false}); !movable) {
    return bad("the VM cannot be split: " + movable.error().text);
  }
  for (const auto& backend : record_.backends) {
    struct statfs files {};
    std::error_code error;
    if (!std::filesystem::is_regular_file(backend.mem_path, error) || ::statfs(backend.mem_path.c_str(), &files) != 0 ||
        files.f_type != TMPFS_MAGIC) {
      return bad("RAM backend '" + backend.id + "' is not a file of its own on tmpfs: its pages cannot be evicted");
    }
  }
  const auto hello = services_.dataplane.hello();
  if (!hello || !hello->postcopy()) {
    return bad("pages cannot be missing on this host: " +
               (hello ? printable(hello->postcopy_refusal()) : "its data plane is down"));
  }
  return {};
}

/// The destination of a migration that keeps stores: from the commit on the VM is split here as the source had it.
std::expected<void, Error> Vm::note_kept_stores(const controlplane::v1::PrepareDestination& command) {
  if (!command.has_split()) {
    return {};
  }
  auto split = record_of(command.split());
  if (!split) {
    return std::unexpected(split.error());
  }
  if (command.mode() == dataplane::v1::PRECOPY) {
    return bad("PrepareDestination: pages stay on sub hosts, so the mode cannot be precopy");
  }
  record_.split = std::move(*split);
  record_.evictable = record_.migration->keeps_stores = true;
  return {};
}

/// The data plane needs userfaultfds that tell of all faults; one that was only for tracking makes way for them.
std::expected<void, Error> Vm::make_evictable() {
  if (record_.evictable) {
    return {};
  }
  detach_guest();
  if (!record_.userfaultfd_events) {
    take_back_userfaultfd(record_);
  }
  record_.evictable = true;
  auto attached = attach_memory(dataplane::v1::AttachGuest::CONTINUING, {.evictable = true});
  if (!attached) {
    record_.evictable = false;
    reattach();
    return std::unexpected(attached.error());
  }
  spdlog::info("VM {}: attached so that it can be split; its history begins anew", record_.definition.name);
  return {};
}

/// An arriving guest's QEMU is given it before the commit: once the guest runs, QEMU's own thread may wait for a page
/// that comes only when the data plane has been told of the split, and then no command of ours is answered.
std::expected<void, Error> Vm::give_pin() {
  if (record_.pin_in_qemu) {
    return {};
  }
  if (!qmp_) {
    return std::unexpected(make_error(Error::INTERNAL, "QEMU does not take a pipe: its monitor is not connected"));
  }
  std::error_code ignored;
  std::filesystem::create_directories(paths_.run_dir, ignored);  // of a QEMU that somebody else started
  if (::unlink(paths_.pin_pipe().c_str()) != 0 && errno != ENOENT) {
    return pin_error("remove the former");
  }
  if (::mkfifo(paths_.pin_pipe().c_str(), 0600) != 0) {
    return pin_error("make");
  }
  const auto end = open_pin();
  if (!end) {
    return std::unexpected(end.error());
  }
  if (auto passed = getfd(*qmp_, kPinName, end->get()); !passed) {
    return std::unexpected(make_error(Error::INTERNAL, "QEMU does not take a pipe: " + passed.error().text));
  }
  record_.pin_in_qemu = true;
  return save();
}

std::unexpected<Error> Vm::pin_error(const char* what) const {
  return std::unexpected(make_error(
      Error::KERNEL, std::string("cannot ") + what + " " + paths_.pin_pipe().string() + ": " + std::strerror(errno)));
}

/// For both ways: opening waits for nobody, and no end ever reads end-of-file.
std::expected<UniqueFd, Error> Vm::open_pin() const {
  UniqueFd end(::open(paths_.pin_pipe().c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW));
  struct stat status {};
  if (!end.valid() || ::fstat(end.get(), &status) != 0 || !S_ISFIFO(status.st_mode)) {
    return pin_error("open");
  }
  return end;
}

/// Both ends of one pipe, the same for the life of this QEMU: it has the pipe open, so what is in it outlives us.
std::expected<std::pair<UniqueFd, UniqueFd>, Error> Vm::pin_pipe() {
  if (auto given = give_pin(); !given) {
    return std::unexpected(given.error());
  }
  auto read_end = open_pin();
  auto write_end = open_pin();
  if (!read_end || !write_end) {
    return std::unexpected(read_end ? write_end.error() : read_end.error());
  }
  return std::pair(std::move(*read_end), std::move(*write_end));
}

// ---- commands -------------------------------------------------------------------------------------------------------

AgentResult Vm::do_split_guest(const controlplane::v1::SplitGuest& command) {
  if (command.ownership() != record_.ownership) {
    return std::unexpected(make_error(Error::STALE_OWNERSHIP, "SplitGuest: ownership " +
                                                                  std::to_string(command.ownership()) + " is not " +
                                                                  std::to_string(record_.ownership)));
  }
  auto wanted = record_of(command);
  if (!wanted) {
    return std::unexpected(wanted.error());
  }
  if (is_source()) {
    return bad("SplitGuest: the VM is in a migration: wait until it has ended");
  }
  if (record_.split && record_.split->gathered && wanted->gather && record_.split->subs == wanted->subs) {
    return AgentReply();  // it has, and says so
  }
  const auto before = record_.split;
  if (!before && wanted->gather) {
    return bad("SplitGuest: this VM is not split here");
  }
  if (!before) {
    if (auto can = check_can_split(); !can) {
      return std::unexpected(can.error());
    }
    if (auto made = make_evictable(); !made) {
      return std::unexpected(made.error());
    }
  }
  record_.split = std::move(*wanted);
  if (auto saved = save(); !saved) {
    record_.split = before;
    return std::unexpected(saved.error());
  }
  if (auto told = tell_split(); !told) {
    if (told.error().code() != Error::INTERNAL) {
      record_.split = before;  // it has refused
      static_cast<void>(save());
    }  // else nobody knows whether it has changed: we go on as if, and the control plane sees that
    return std::unexpected(told.error());
  }
  services_.on_change();
  return AgentReply();
}

std::expected<void, Error> Vm::tell_split() {
  auto pipe = pin_pipe();
  if (!pipe) {
    return std::unexpected(pipe.error());
  }
  dataplane::v1::ToDataplane request;
  auto& split = *request.mutable_split_guest();
  split.set_vm_uuid(uuid_.to_bytes());
  split.set_ownership(record_.ownership);
  split.set_budget_bytes(record_.split->budget_bytes);
  split.set_gather(record_.split->gather);
  for (const auto& sub : record_.split->subs) {
    auto& store = *split.add_stores();
    store.set_store_id(sub.store_id.to_bytes());
    store.set_sub(sub.number);
    store.set_drain(sub.drain);
  }
  auto reply = services_.dataplane.call(std::move(request), std::array{pipe->first.get(), pipe->second.get()});
  if (!reply) {
    return std::unexpected(reply.error());
  }
  gather_told_ = record_.split->gather;
  {
    const std::lock_guard lock(summary_mutex_);
    split_status_ = reply->split_guest().status();
    stalled_beats_ = 0;
  }
  services_.on_change();
  return {};
}

/// After a restart of either daemon.
void Vm::take_up_split() {
  if (!record_.split || record_.split->gathered) {
    return;
  }
  if (auto told = tell_split(); !told) {
    spdlog::error("VM {}: its data plane does not keep to the budget: {}", record_.definition.name,
                  text_of(told.error()));
  }
}

AgentResult Vm::do_end_split(const controlplane::v1::EndSplit& command) {
  if (command.ownership() != record_.ownership) {
    return std::unexpected(make_error(Error::STALE_OWNERSHIP, "EndSplit: of another ownership"));
  }
  if (record_.split && !record_.split->gathered) {
    return bad("EndSplit: pages of this VM are on other hosts");
  }
  record_.split.reset();
  const auto saved = save();
  return saved ? AgentResult(AgentReply()) : std::unexpected(saved.error());
}

// ---- what the data plane tells --------------------------------------------------------------------------------------

void Vm::on_dataplane_status(const dataplane::v1::Status* status) {
  std::optional<dataplane::v1::SplitStatus> mine;
  if (status != nullptr) {
    for (const auto& split : status->splits()) {
      if (split.vm_uuid() == uuid_.to_bytes()) {
        mine = split;
      }
    }
  }
  const std::lock_guard lock(summary_mutex_);
  const bool shrank = mine && (!split_status_ || mine->resident_bytes() < split_status_->resident_bytes());
  stalled_beats_ = shrank ? 0 : stalled_beats_ + 1;
  blocking_pages_ = mine ? std::optional(mine->pages_blocking()) : blocking_pages_;
  split_status_ = std::move(mine);
}

bool Vm::shrinks() const {
  const std::lock_guard lock(summary_mutex_);
  return split_status_ && split_status_->resident_bytes() > split_status_->budget_bytes() &&
         stalled_beats_ < kStalledBeatsMax;
}

void Vm::on_gathered() {
  queue_.post([this] {
    if (record_.split && record_.split->gather && !std::exchange(record_.split->gathered, true)) {
      spdlog::info("VM {}: all of it is here again", record_.definition.name);
      static_cast<void>(save());  // if not: it is asked again
    }
  });
}

/// Where the word itself was missed: this data plane was told to gather, has the guest, and no split of it any more.
void Vm::look_gathered() {
  if (!record_.split || !record_.split->gather || record_.split->gathered || !gather_told_) {
    return;
  }
  dataplane::v1::ToDataplane request;
  request.mutable_get_status();
  const auto reply = services_.dataplane.call(std::move(request));
  if (!reply) {
    return;
  }
  const auto is_mine = [this](const auto& each) { return each.vm_uuid() == uuid_.to_bytes(); };
  const auto& guests = reply->status().guests();
  const auto guest = std::ranges::find_if(guests, is_mine);
  if (guest != guests.end() && guest->qemu_pid() == record_.process.pid && !guest->attaching() &&
      std::ranges::none_of(reply->status().splits(), is_mine)) {
    on_gathered();
  }
}

/// Nobody needs what sub hosts hold of it.
void Vm::emit_ended(const std::string& why) {
  if (!record_.split || arrives()) {
    return;
  }
  controlplane::v1::FromAgent message;
  message.mutable_vm_ended()->set_uuid(uuid_.to_bytes());
  message.mutable_vm_ended()->set_ownership(record_.ownership);
  message.mutable_vm_ended()->set_text(why);
  services_.send(std::move(message), ControlSession::Delivery::kKept);
}

}  // namespace godwit::bridge
