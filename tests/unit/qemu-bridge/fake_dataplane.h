#pragma once
// A data plane of one host that answers at once and moves a guest's RAM by copying the file to its peer's when the
// device state has ended; it may say that pages are missing all the same, and then behaves as dataplane.proto says
// until complete(). Owns its socket and one thread. Everything that it was asked is kept in order.

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "base/uuid.h"
#include "dataplane.pb.h"

namespace godwit::bridge {

class FakeDataplane {
 public:
  using Request = dataplane::v1::ToDataplane;

  explicit FakeDataplane(std::filesystem::path socket) : path_(std::move(socket)) { listen(); }
  ~FakeDataplane() { stop(); }

  void set_peer(FakeDataplane* peer) { peer_ = peer; }
  /// Dies; restart() is a new process that knows nothing.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      ::shutdown(listener_.get(), SHUT_RDWR);
      if (connection_.valid()) {
        ::shutdown(connection_.get(), SHUT_RDWR);
      }
      changed_.notify_all();
    }
    if (thread_.joinable()) {
      thread_.join();
    }
  }
  void restart() {
    stop();
    stopping_ = false;
    guest_.clear();
    attached_.Clear();
    sessions_.clear();
    splits_.clear();
    listen();
  }
  /// Keeps the destination's memory from ever being ready.
  void hold_memory() { hold_memory_ = true; }
  /// Lets go what was held.
  void release_memory(const Id128& migration) {
    hold_memory_ = false;
    place_memory(migration.to_bytes());
  }
  /// A destination that says so many pages are missing when the device state is to be loaded.
  void lack(std::uint64_t pages) { lacking_ = pages; }
  void offer_postcopy(bool offered) { postcopy_ = offered; }
  /// Answers CommitMigration with an error.
  void refuse_commit(bool refused) { refuse_commit_ = refused; }
  /// The flow dies, on this side.
  void cut(const Id128& migration, const std::string& reason) {
    dataplane::v1::Event event;
    event.mutable_connection_lost()->set_migration_id(migration.to_bytes());
    event.mutable_connection_lost()->set_reason(reason);
    change_paging(migration, [&](auto& paging) {
      paging.set_connected(false);
      paging.set_reason(reason);
    });
    send_event(std::move(event));
  }
  void complete(const Id128& migration) {
    change_paging(migration, [](auto& paging) { paging.set_complete(true); });
    dataplane::v1::Event event;
    event.mutable_complete()->set_migration_id(migration.to_bytes());
    event.mutable_complete()->mutable_stats()->mutable_paging()->set_pages_demand(5);
    send_event(std::move(event));
  }
  /// All pages of a VM that was told to gather are back.
  void gathered(const Id128& vm, bool say_so) {
    {
      const std::lock_guard lock(mutex_);
      splits_.erase(vm.to_bytes());
    }
    dataplane::v1::Event event;
    event.mutable_gathered()->set_vm_uuid(vm.to_bytes());
    if (say_so) {
      send_event(std::move(event));
    }
  }
  /// The machine was booted anew: the files of page stores are gone.
  void lose_stores() {
    const std::lock_guard lock(mutex_);
    stores_.clear();
  }
  void refuse_split(bool refused) { refuse_split_ = refused; }
  int split_descriptors() const { return split_descriptors_; }
  /// Answers every AttachGuest with an error.
  void refuse_attach() { refuse_attach_ = true; }
  /// Both hosts' RAM is one file: nothing to copy, so what is left is QEMU's and the bridges' own time.
  void share_memory() { shared_memory_ = true; }

  bool wait_for(Request::RequestCase kind, int count = 1) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return count_of(kind) >= count; });
  }
  int count(Request::RequestCase kind) const {
    const std::lock_guard lock(mutex_);
    return count_of(kind);
  }
  std::vector<Request> requests() const {
    const std::lock_guard lock(mutex_);
    return requests_;
  }
  dataplane::v1::AttachGuest last_attach() const {
    const std::lock_guard lock(mutex_);
    const auto found =
        std::find_if(requests_.rbegin(), requests_.rend(), [](const Request& r) { return r.has_attach_guest(); });
    return found == requests_.rend() ? dataplane::v1::AttachGuest() : found->attach_guest();
  }

  void send_event(dataplane::v1::Event event) {
    dataplane::v1::FromDataplane message;
    *message.mutable_event() = std::move(event);
    send(message);
  }

 private:
  int count_of(Request::RequestCase kind) const {
    return static_cast<int>(
        std::count_if(requests_.begin(), requests_.end(), [&](const Request& r) { return r.request_case() == kind; }));
  }

  void listen() {
    ::unlink(path_.c_str());
    listener_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof(address.sun_path) - 1);
    if (::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
        ::listen(listener_.get(), 4) != 0) {
      std::abort();
    }
    thread_ = std::thread([this] { run(); });
  }

  void run() {
    std::vector<char> buffer(256 << 10);
    while (true) {
      UniqueFd accepted(::accept(listener_.get(), nullptr, nullptr));
      {
        const std::lock_guard lock(mutex_);
        connection_ = std::move(accepted);
        if (stopping_ || !connection_.valid()) {
          return;
        }
      }
      while (true) {
        iovec part{buffer.data(), buffer.size()};
        alignas(cmsghdr) char control[CMSG_SPACE(64 * sizeof(int))];
        msghdr header{};
        header.msg_iov = &part;
        header.msg_iovlen = 1;
        header.msg_control = control;
        header.msg_controllen = sizeof(control);
        const ssize_t got = ::recvmsg(connection_.get(), &header, MSG_CMSG_CLOEXEC);
        if (got <= 0) {
          break;
        }
        std::vector<UniqueFd> descriptors;
        for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
          for (std::size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            descriptors.emplace_back(fd);
          }
        }
        Request request;
        if (request.ParseFromArray(buffer.data(), static_cast<int>(got))) {
          handle(request, std::move(descriptors));
        }
      }
    }
  }

  void handle(const Request& request, std::vector<UniqueFd> descriptors) {
    dataplane::v1::FromDataplane answer;
    auto& reply = *answer.mutable_reply();
    reply.set_id(request.id());
    if (request.has_hello()) {
      reply.mutable_hello()->set_version(1);
      reply.mutable_hello()->add_trackers(dataplane::v1::TRACKER_PAGEMAP_SCAN);
      reply.mutable_hello()->set_postcopy(postcopy_);
      reply.mutable_hello()->set_postcopy_refusal(postcopy_ ? "" : "the test offers none");
    } else if (request.has_attach_guest() && refuse_attach_) {
      reply.mutable_error()->set_code(dataplane::v1::Error::KERNEL);
      reply.mutable_error()->set_text("refused by the test");
    } else if (request.has_attach_guest()) {
      const std::lock_guard lock(mutex_);
      guest_.clear();
      for (int i = 0; i < request.attach_guest().regions_size(); ++i) {
        guest_.push_back(std::move(descriptors.at(static_cast<std::size_t>(i))));
      }
      reply.mutable_attach_guest()->set_tracker(dataplane::v1::TRACKER_PAGEMAP_SCAN);
      auto& guest = *attached_.add_guests();
      guest.set_vm_uuid(request.attach_guest().vm_uuid());
      guest.set_qemu_pid(request.attach_guest().qemu_pid());
      guest.set_tracker(dataplane::v1::TRACKER_PAGEMAP_SCAN);
    } else if (request.has_detach_guest()) {
      attached_.Clear();
    } else if (request.has_prepare_migration()) {
      sessions_[request.prepare_migration().migration_id()] = request.prepare_migration().role();
      reply.mutable_prepare_migration()->mutable_endpoint()->set_address("192.0.2.1");
    } else if (request.has_finish_migration()) {
      finish(request.finish_migration(), reply);
    } else if (request.has_commit_migration()) {
      commit(request.commit_migration(), reply);
    } else if (request.has_prepare_resume()) {
      prepare_resume(request.prepare_resume(), reply);
    } else if (request.has_resume_migration()) {
      change_paging(*Id128::from_bytes(request.resume_migration().migration_id()), [](auto& paging) {
        paging.set_connected(true);
        paging.clear_reason();
      });
    } else if (request.has_split_guest()) {
      split_descriptors_ = static_cast<int>(descriptors.size());
      split(request.split_guest(), reply);
    } else if (request.has_prepare_sub()) {
      reply.mutable_prepare_sub()->mutable_endpoint()->set_flow_id(++flow_ids_);
    } else if (request.has_prepare_store()) {
      prepare_store(request.prepare_store(), reply);
    } else if (request.has_drop_store()) {
      const std::lock_guard lock(mutex_);
      stores_.erase(request.drop_store().store_id());
    } else if (request.has_get_status()) {
      tell_status(*reply.mutable_status());
    } else if (request.has_list_images()) {
      reply.mutable_list_images();
    }
    send(answer);
    if (peer_ != nullptr && request.has_device_state()) {
      dataplane::v1::Event event;
      event.mutable_device_state()->set_migration_id(request.device_state().migration_id());
      event.mutable_device_state()->set_data(request.device_state().data());
      peer_->send_event(std::move(event));
    } else if (peer_ != nullptr && request.has_device_state_end()) {
      peer_->arrive(request.device_state_end().migration_id(), *this);
    }
    const std::lock_guard lock(mutex_);
    requests_.push_back(request);
    changed_.notify_all();
  }

  void tell_status(dataplane::v1::Status& status) {
    const std::lock_guard lock(mutex_);
    status = attached_;
    for (const auto& [id, paging] : paging_) {
      if (sessions_.contains(id)) {
        *status.add_paging() = paging;
      }
    }
    for (const auto& [vm, split] : splits_) {
      *status.add_splits() = split;
    }
    for (const auto& [id, store] : stores_) {
      *status.add_stores() = store;
    }
  }

  using Error = dataplane::v1::Error;

  static void refuse(dataplane::v1::Reply& reply, Error::Code code, const char* text) {
    reply.mutable_error()->set_code(code);
    reply.mutable_error()->set_text(text);
  }

  void split(const dataplane::v1::SplitGuest& request, dataplane::v1::Reply& reply) {
    if (refuse_split_) {
      return refuse(reply, Error::BAD_REQUEST, "the test refuses the split");
    }
    const std::lock_guard lock(mutex_);
    auto& status = splits_[request.vm_uuid()];
    status.set_vm_uuid(request.vm_uuid());
    status.set_budget_bytes(request.budget_bytes());
    status.set_pages_total(1);
    status.set_gathering(request.gather());
    *reply.mutable_split_guest()->mutable_status() = status;
  }

  void prepare_store(const dataplane::v1::PrepareStore& request, dataplane::v1::Reply& reply) {
    const std::lock_guard lock(mutex_);
    if (!request.create() && !stores_.contains(request.store_id())) {
      return refuse(reply, Error::NO_SUCH_STORE, "no files of it");
    }
    auto& store = stores_[request.store_id()];
    store.set_store_id(request.store_id());
    store.set_budget_bytes(request.budget_bytes());
    store.set_resident_bytes(4096);
    reply.mutable_prepare_store()->mutable_endpoint()->set_flow_id(++flow_ids_);
  }

  void commit(const dataplane::v1::CommitMigration& request, dataplane::v1::Reply& reply) {
    const auto session = sessions_.find(request.migration_id());
    if (session == sessions_.end()) {
      return refuse(reply, Error::NO_SUCH_MIGRATION, "restarted meanwhile");
    }
    if (refuse_commit_) {
      return refuse(reply, Error::KERNEL, "the test refuses the commit");
    }
    take_up(request.migration_id(), session->second, true);
    reply.mutable_commit_migration()->set_epoch_next(100);
  }

  void prepare_resume(const dataplane::v1::PrepareResume& request, dataplane::v1::Reply& reply) {
    const bool guest = attached_.guests_size() > 0;
    const bool session = sessions_.contains(request.migration_id());
    const bool committed = [&] {
      const std::lock_guard lock(mutex_);
      return paging_.contains(request.migration_id());
    }();
    const bool image = request.role() == dataplane::v1::ROLE_SOURCE && committed;
    if (session && !committed) {
      return refuse(reply, Error::BAD_REQUEST, "not committed");
    }
    if (!session && !guest && !image) {
      return refuse(reply, Error::NO_SUCH_MIGRATION, "neither session nor guest nor image");
    }
    sessions_[request.migration_id()] = request.role();
    take_up(request.migration_id(), request.role(), false);
    reply.mutable_prepare_resume()->mutable_endpoint()->set_flow_id(++flow_ids_);
    reply.mutable_prepare_resume()->set_pages_missing(lacking_);
  }

  void take_up(const std::string& migration, dataplane::v1::Role role, bool connected) {
    const std::lock_guard lock(mutex_);
    auto& paging = paging_[migration];
    paging.set_migration_id(migration);
    paging.set_role(role);
    paging.set_connected(connected);
    paging.mutable_stats()->set_pages_missing(lacking_);
  }

  template <typename Change>
  void change_paging(const Id128& migration, Change change) {
    const std::lock_guard lock(mutex_);
    change(paging_[migration.to_bytes()]);
  }

  void finish(const dataplane::v1::FinishMigration& request, dataplane::v1::Reply& reply) {
    const std::lock_guard lock(mutex_);
    const auto paging = paging_.find(request.migration_id());
    const bool committed = request.outcome() == dataplane::v1::OUTCOME_COMMITTED;
    if (paging != paging_.end()) {
      const bool source = paging->second.role() == dataplane::v1::ROLE_SOURCE;
      if (committed && !paging->second.complete() && !(source && request.destination_complete())) {
        return refuse(reply, Error::BAD_REQUEST, "pages are missing");
      }
      paging_.erase(paging);
    }
    sessions_.erase(request.migration_id());
    reply.mutable_finish_migration()->set_epoch_next(100);
    reply.mutable_finish_migration()->set_image_retained(request.outcome() != dataplane::v1::OUTCOME_ABANDONED);
  }

  /// The last page: the whole RAM, then the word that it is there.
  void arrive(const std::string& migration, FakeDataplane& source) {
    dataplane::v1::Event end;
    end.mutable_device_state()->set_migration_id(migration);
    end.mutable_device_state()->set_end(true);
    send_event(std::move(end));
    sender_ = &source;
    if (!hold_memory_) {
      place_memory(migration);
    }
  }

  void place_memory(const std::string& migration) {
    const FakeDataplane& source = *sender_.load();
    for (std::size_t i = 0; i < guest_.size() && !shared_memory_; ++i) {
      off_t at = 0;
      std::vector<char> page(1 << 20);
      ssize_t got = 0;
      while ((got = ::pread(source.guest_[i].get(), page.data(), page.size(), at)) > 0) {
        if (::pwrite(guest_[i].get(), page.data(), static_cast<std::size_t>(got), at) != got) {
          std::abort();
        }
        at += got;
      }
    }
    dataplane::v1::Event ready;
    ready.mutable_memory_ready()->set_migration_id(migration);
    ready.mutable_memory_ready()->set_pages_missing(lacking_);
    send_event(std::move(ready));
  }

  void send(const dataplane::v1::FromDataplane& message) {
    const std::string bytes = message.SerializeAsString();
    const std::lock_guard lock(send_mutex_);
    ::send(connection_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }

  std::filesystem::path path_;
  FakeDataplane* peer_ = nullptr;
  std::atomic<FakeDataplane*> sender_ = nullptr;
  std::atomic<bool> hold_memory_ = false;
  std::atomic<bool> refuse_attach_ = false;
  std::atomic<bool> shared_memory_ = false;
  std::atomic<bool> postcopy_ = true;
  std::atomic<bool> refuse_commit_ = false;
  std::atomic<std::uint64_t> lacking_ = 0;
  mutable std::mutex mutex_;
  std::mutex send_mutex_;
  std::condition_variable changed_;
  UniqueFd listener_;
  UniqueFd connection_;
  std::vector<UniqueFd> guest_;
  dataplane::v1::Status attached_;                             // of the thread
  std::map<std::string, dataplane::v1::Role> sessions_;        // of the thread; by migration
  std::map<std::string, dataplane::v1::PagingStatus> paging_;  // survives restart(): the files
  std::map<std::string, dataplane::v1::SplitStatus> splits_;
  std::map<std::string, dataplane::v1::StoreStatus> stores_;  // survives restart(): the files
  std::atomic<bool> refuse_split_ = false;
  std::atomic<int> split_descriptors_ = 0;
  std::uint32_t flow_ids_ = 0;
  std::vector<Request> requests_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace godwit::bridge
