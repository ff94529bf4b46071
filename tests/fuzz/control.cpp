// The data plane's control socket: the real socket, the real service, guests of 64 KiB, and an lcore without a wire.
// Input: messages, each a byte (how many descriptors), a byte (which: bit i of file i: the guest's RAM or /dev/null),
// u16 length, the bytes of a ToDataplane.
// Properties: what the socket gives is what was sent, with its descriptors; each request gets exactly one reply, which
// the bridge can read; requests that are refused leave no guest behind; no descriptor stays open.

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <mutex>

#include "dataplane/daemon/control_socket.h"
#include "dataplane/daemon/service.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/dataplane/bridge_client.h"
#include "tests/unit/dataplane/no_queue.h"

namespace godwit::fuzz {
namespace {

namespace api = dataplane::v1;

constexpr std::size_t kRamBytes = 64 * 1024;
constexpr std::size_t kMessagesMax = 24;
/// No job takes long here: a reply that takes so long never comes.
constexpr std::chrono::seconds kReplyTime{20};
constexpr std::int32_t kSomeProcess = 1;  // there always is one

/// A port that nothing comes from and that swallows what it is given.
class NoWire final : public tests::NoQueue {
 public:
  std::span<std::byte> next_frame(port::Priority) override { return frame_; }

 private:
  std::vector<std::byte> frame_ = std::vector<std::byte>(9216 + port::kEthernetHeaderBytes);
};

/// Where files of this process's runs are: a fresh folder on tmpfs.
class Folder {
 public:
  Folder() : path_("/dev/shm/godwit-fuzz-control-" + std::to_string(getpid())) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directory(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// Lets the control thread sleep until a worker has posted.
class Wake {
 public:
  void kick() {
    {
      const std::lock_guard lock(mutex_);
      kicked_ = true;
    }
    changed_.notify_one();
  }
  [[nodiscard]] bool wait() {
    std::unique_lock lock(mutex_);
    const bool kicked = changed_.wait_for(lock, kReplyTime, [this] { return kicked_; });
    kicked_ = false;
    return kicked;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool kicked_ = false;
};

/// One data plane and the bridge that talks to it.
class Daemon {
 public:
  Daemon()
      : images_(open_images()),
        control_([this] { wake_.kick(); }),
        data_path_(wire_, {.neighbours = {.mac = {{2, 0, 0, 0, 0, 1}}, .addresses = addresses()},
                           .udp_port = 4793,
                           .wake = [this] { wake_.kick(); },
                           .on_sleeping = [](bool) {}}),
        service_(
            options(), images_, control_, data_path_, [this](const api::Event& event) { check_event(event); },
            [](int) {}) {
    data_path_.join({&data_path_});
    auto socket = daemon::ControlSocket::listen({.path = folder_.path() + "/socket", .group = {}});
    FUZZ_CHECK(socket);
    socket_.emplace(std::move(*socket));
    FUZZ_CHECK(bridge_.connect(folder_.path() + "/socket") && socket_->accept_pending());
  }

  void send(Bytes bytes, const std::vector<int>& descriptors) {
    FUZZ_CHECK(bridge_.send_bytes({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, descriptors));
    auto message = socket_->receive();
    FUZZ_CHECK(message && same(std::as_bytes(std::span(message->bytes)), bytes));
    FUZZ_CHECK(message->descriptors.size() == descriptors.size());
    handle(std::move(*message));
  }

 private:
  static std::vector<port::LocalAddress> addresses() { return {{*wire::parse_ip_address("10.0.0.1"), 24}}; }
  daemon::Images open_images() const {
    auto store = memory::ImageStore::open(folder_.path(), 0, {std::byte{1}});
    FUZZ_CHECK(store);
    return daemon::Images(std::move(*store));
  }
  [[nodiscard]] daemon::ServiceOptions options() const {
    daemon::ServiceOptions options;
    options.run_dir = folder_.path();
    options.memory_dir = folder_.path();
    options.address = "10.0.0.1";
    options.udp_port = 4793;
    options.tracker = memory::TrackerKind::kHashes;
    options.addresses = addresses();
    options.host_boot_id = Id128({1});
    options.daemon_boot_id = Id128({2});
    return options;
  }

  void handle(daemon::ReceivedMessage message) {
    api::ToDataplane request;
    if (!request.ParseFromString(message.bytes)) {
      return;
    }
    const auto answered = std::make_shared<int>(0);
    service_.handle(std::move(request), std::move(message.descriptors), [this, answered](const api::Reply& reply) {
      ++*answered;
      FUZZ_CHECK(*answered == 1);
      check_readable(reply);
    });
    turn();
    while (*answered == 0) {
      FUZZ_CHECK(wake_.wait());
      turn();
    }
  }

  void turn() {
    now_ = now_ + milliseconds(1);
    while (control_.run() || data_path_.turn(now_)) {
      if (++turns_ % 64 == 0) {
        break;  // a flow that sends has always more to do
      }
    }
  }

  /// What the daemon sends and the bridge cannot parse would end their connection.
  static void check_readable(const api::Reply& reply) {
    api::FromDataplane message;
    *message.mutable_reply() = reply;
    FUZZ_CHECK(api::FromDataplane().ParseFromString(message.SerializeAsString()));
    FUZZ_CHECK(!reply.has_error() || reply.error().code() == api::Error::NONE || !reply.error().text().empty());
  }
  static void check_event(const api::Event& event) {
    api::FromDataplane message;
    *message.mutable_event() = event;
    FUZZ_CHECK(api::FromDataplane().ParseFromString(message.SerializeAsString()));
  }

  Folder folder_;
  Wake wake_;
  Instant now_{1'000'000};
  std::uint64_t turns_ = 0;
  NoWire wire_;
  daemon::Images images_;
  daemon::Inbox control_;
  daemon::DataPath data_path_;
  daemon::Service service_;
  std::optional<daemon::ControlSocket> socket_;
  tests::BridgeClient bridge_;
};

int lowest_free_descriptor() {
  const UniqueFd probe(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0));
  return probe.get();
}

// ---- seeds ----
constexpr std::uint8_t kRam = 0;

void put(Output& out, const api::ToDataplane& request, std::uint8_t descriptors = 0) {
  const std::string bytes = request.SerializeAsString();
  out.number(descriptors).number(kRam).number(static_cast<std::uint16_t>(bytes.size())).text(bytes);
}

std::string id(char c) { return std::string(16, c); }

api::ToDataplane attach_request(api::AttachGuest::Kind kind) {
  api::ToDataplane request;
  request.set_id(2);
  api::AttachGuest& attach = *request.mutable_attach_guest();
  attach.set_vm_uuid(id('v'));
  attach.set_image_id(id('i'));
  attach.set_ownership(3);
  attach.set_tracker(api::TRACKER_HASHES);
  attach.set_kind(kind);
  attach.set_epoch(5);
  attach.set_qemu_pid(kSomeProcess);
  api::Region& region = *attach.add_regions();
  region.set_name("ram0");
  region.set_bytes(kRamBytes);
  region.set_page_bytes(4096);
  region.set_qemu_address(0x7f0000000000);
  return request;
}

std::vector<std::byte> migration_seed(api::Role role) {
  const bool source = role == api::ROLE_SOURCE;
  Output out;
  put(out, attach_request(source ? api::AttachGuest::FRESH : api::AttachGuest::ARRIVING), 1);
  api::ToDataplane request;
  request.set_id(3);
  api::PrepareMigration& prepare = *request.mutable_prepare_migration();
  prepare.set_migration_id(id('m'));
  prepare.set_vm_uuid(id('v'));
  prepare.set_ownership(3);
  prepare.set_role(role);
  prepare.set_epoch_base(10);
  prepare.set_epoch_count(1000);
  prepare.set_bytes_total(kRamBytes);
  put(out, request);
  request.set_id(4);
  api::StartMigration& start = *request.mutable_start_migration();
  start.set_migration_id(id('m'));
  start.mutable_peer()->set_address("10.0.0.2");
  start.mutable_peer()->set_udp_port(4793);
  start.mutable_peer()->set_flow_id(77);
  start.mutable_peer()->set_mtu_bytes(1500);
  start.mutable_peer()->set_lanes(1);
  start.set_secret(id('a') + id('b'));
  start.mutable_policy()->set_downtime_limit_us(300000);
  put(out, request);
  request.set_id(5);
  request.mutable_device_state()->set_migration_id(id('m'));
  request.mutable_device_state()->set_data("state");
  put(out, request);
  request.set_id(6);
  request.mutable_cancel_migration()->set_migration_id(id('m'));
  put(out, request);
  request.set_id(7);
  request.mutable_finish_migration()->set_migration_id(id('m'));
  request.mutable_finish_migration()->set_outcome(api::OUTCOME_ABORTED);
  request.mutable_finish_migration()->set_ownership(source ? 3 : 0);
  put(out, request);
  return out.take();
}

/// Refused, with a text that is cut within its last character.
std::vector<std::byte> foreign_name_seed() {
  api::ToDataplane request = attach_request(api::AttachGuest::FRESH);
  request.mutable_attach_guest()->mutable_regions(0)->set_name(std::string(63, 'a') + "\xc3\xa9");
  Output out;
  put(out, request, 1);
  return out.take();
}

std::vector<std::byte> questions_seed() {
  Output out;
  api::ToDataplane request;
  request.set_id(1);
  request.mutable_hello()->set_version(1);
  put(out, request);
  put(out, attach_request(api::AttachGuest::FRESH), 1);
  request.mutable_get_status();
  put(out, request);
  request.mutable_list_images();
  put(out, request);
  request.mutable_make_room()->set_bytes(4096);
  put(out, request);
  request.mutable_drop_image()->mutable_id()->set_vm_uuid(id('v'));
  put(out, request);
  request.mutable_detach_guest()->set_vm_uuid(id('v'));
  request.mutable_detach_guest()->set_ownership(3);
  put(out, request);
  return out.take();
}

}  // namespace

void run(Bytes bytes) {
  spdlog::set_level(spdlog::level::off);
  const UniqueFd ram(::memfd_create("godwit-fuzz-ram", MFD_CLOEXEC));
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  FUZZ_CHECK(ram.valid() && null.valid() && ::ftruncate(ram.get(), kRamBytes) == 0);
  const int before = lowest_free_descriptor();
  {
    Input input(bytes);
    Daemon daemon;
    for (std::size_t i = 0; i < kMessagesMax && !input.empty(); ++i) {
      const std::size_t count = input.number<std::uint8_t>() % 6;
      const auto which = input.number<std::uint8_t>();
      std::vector<int> descriptors;
      for (std::size_t file = 0; file < count; ++file) {
        descriptors.push_back((which >> file & 1) == 0 ? ram.get() : null.get());
      }
      const Bytes message = input.bytes(input.number<std::uint16_t>());
      if (!message.empty()) {
        daemon.send(message, descriptors);
      }
    }
  }
  FUZZ_CHECK(lowest_free_descriptor() == before);
}

std::vector<Seed> seeds() {
  return {{"questions", questions_seed()},
          {"foreign-name", foreign_name_seed()},
          {"source", migration_seed(api::ROLE_SOURCE)},
          {"destination", migration_seed(api::ROLE_DESTINATION)}};
}

}  // namespace godwit::fuzz
