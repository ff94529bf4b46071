#pragma once
// One host of a test on one machine: directories, a fake data plane, a client of it, and at most one Vm, whose events
// are kept. Plus the guest that the tests boot: Debian's kernel and an initramfs that prints "beat N" ten times a
// second. Everything is ended and removed with it. Test thread.

#include <glob.h>
#include <gtest/gtest.h>

#include <fstream>
#include <future>

#include "qemu-bridge/agent/vm.h"
#include "tests/unit/qemu-bridge/fake_dataplane.h"
#include "tests/unit/qemu-bridge/temp_dir.h"

namespace godwit::bridge {

inline constexpr std::chrono::seconds kPatience{60};

inline std::string kernel_path() {
  glob_t found{};
  std::string path;
  if (::glob("/boot/vmlinuz-*-cloud-amd64", 0, nullptr, &found) == 0 && found.gl_pathc > 0) {
    path = found.gl_pathv[0];
  }
  ::globfree(&found);
  return path;
}

/// Empty when the machine lacks what it takes; then the reason is in `why`.
inline std::filesystem::path make_initramfs(const std::filesystem::path& dir, std::string& why) {
  if (::access("/bin/busybox", X_OK) != 0 || kernel_path().empty()) {
    why = "needs busybox-static and linux-image-cloud-amd64";
    return {};
  }
  const auto root = dir / "root";
  std::filesystem::create_directories(root / "bin");
  std::filesystem::copy_file("/bin/busybox", root / "bin/busybox");
  std::ofstream(root / "init") << "#!/bin/busybox sh\ni=0\nwhile true; do i=$((i+1)); echo \"beat $i\"; "
                                  "/bin/busybox usleep 100000; done\n";
  std::filesystem::permissions(root / "init", std::filesystem::perms::all);
  const auto image = dir / "initramfs";
  const std::string command =
      "cd '" + root.string() + "' && find . | /bin/busybox cpio -o -H newc 2>/dev/null > '" + image.string() + "'";
  if (std::system(command.c_str()) != 0) {
    why = "cannot make an initramfs";
    return {};
  }
  return image;
}

class TestHost {
 public:
  using Event = controlplane::v1::MigrationEvent;

  TestHost()
      : memory_("/dev/shm"),
        dataplane(dir_.path() / "dp.sock"),
        journal(dir_.path() / "state"),
        client_(std::make_unique<DataplaneClient>((dir_.path() / "dp.sock").string(),
                                                  DataplaneClient::Handlers{.on_up =
                                                                                [this](const auto& hello) {
                                                                                  if (const auto vm = present()) {
                                                                                    vm->on_dataplane_up(hello);
                                                                                  }
                                                                                },
                                                                            .on_down =
                                                                                [this](const auto& reason) {
                                                                                  if (const auto vm = present()) {
                                                                                    vm->on_dataplane_down(reason);
                                                                                  }
                                                                                },
                                                                            .on_event =
                                                                                [this](const auto& event) {
                                                                                  if (const auto vm = present()) {
                                                                                    if (event.has_gathered()) {
                                                                                      return vm->on_gathered();
                                                                                    }
                                                                                    vm->on_dataplane_event(event);
                                                                                  }
                                                                                }})) {
    config.host = "test";
    config.run_dir = dir_.path() / "run";
    config.state_dir = dir_.path() / "state";
    config.memory_dir_tmpfs = memory_.path();
    EXPECT_TRUE(journal.load());
    client_->start();
    wait_dataplane();
  }
  ~TestHost() {
    drop_vm();
    client_.reset();
    for (const auto pid : pids_) {
      end_process(pid, std::chrono::milliseconds(0));
    }
  }

  std::shared_ptr<Vm> make_vm(VmRecord record) {
    auto vm = std::make_shared<Vm>(
        VmServices{config, *client_, journal,
                   [this](controlplane::v1::FromAgent message, ControlSession::Delivery) { keep(message); },
                   [this](const Id128&) {
                     const std::lock_guard lock(mutex_);
                     gone_ = true;
                     changed_.notify_all();
                   },
                   [] {}},
        std::move(record));
    const std::lock_guard lock(mutex_);
    vm_ = vm;
    gone_ = false;
    return vm;
  }
  /// The bridge dies: its QEMU stays.
  void drop_vm() {
    remember_qemu();
    std::shared_ptr<Vm> vm;
    {
      const std::lock_guard lock(mutex_);
      vm.swap(vm_);
    }
  }
  std::shared_ptr<Vm> present() {
    const std::lock_guard lock(mutex_);
    return vm_;
  }
  void remember_qemu() {
    if (const auto vm = present()) {
      if (const auto process = identify(vm->running().pid())) {
        pids_.push_back(*process);
      }
    }
  }

  /// Runs one command to its answer.
  template <class Command>
  AgentResult run(Command command) {
    auto answer = std::make_shared<std::promise<AgentResult>>();
    auto result = answer->get_future();
    command([answer](AgentResult value) { answer->set_value(std::move(value)); });
    if (result.wait_for(kPatience) != std::future_status::ready) {
      return std::unexpected(make_error(dataplane::v1::Error::INTERNAL, "the test's patience ended"));
    }
    auto value = result.get();
    remember_qemu();
    return value;
  }

  std::optional<Event> wait_event(Event::Kind kind) {
    std::unique_lock lock(mutex_);
    const auto find = [&] { return std::ranges::find(events_, kind, &Event::kind); };
    changed_.wait_for(lock, kPatience, [&] { return find() != events_.end(); });
    const auto found = find();
    return found == events_.end() ? std::nullopt : std::optional(*found);
  }
  bool wait_dataplane() {
    client_->wait_until_up(kPatience);
    return client_->hello().has_value();
  }
  /// A new process that knows nothing; the client has noticed.
  bool restart_dataplane() {
    using Request = dataplane::v1::ToDataplane;
    const int hellos = dataplane.count(Request::kHello);
    dataplane.restart();
    return dataplane.wait_for(Request::kHello, hellos + 1) && wait_dataplane();
  }
  /// As the agent does each second, only faster, until `reached` holds.
  bool tick_until(const std::function<bool()>& reached) {
    const auto until = std::chrono::steady_clock::now() + kPatience;
    while (!reached()) {
      if (std::chrono::steady_clock::now() > until) {
        return false;
      }
      if (const auto vm = present()) {
        vm->tick();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // tidy-allow(sleep): polls a bounded wait
    }
    return true;
  }
  int count_events(Event::Kind kind) {
    const std::lock_guard lock(mutex_);
    return static_cast<int>(std::ranges::count(events_, kind, &Event::kind));
  }
  bool wait_gone() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [&] { return gone_; });
  }
  /// The guest of a split VM ended.
  bool wait_vm_ended() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [&] { return vm_ended_; });
  }
  bool wait_asked() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [&] { return asked_ > 0; });
  }
  std::int64_t stop_unix_us() {
    const std::lock_guard lock(mutex_);
    std::int64_t stop = 0;
    for (const auto& event : events_) {
      stop = std::max(stop, event.stop_unix_us());
    }
    return stop;
  }
  void clear_events() {
    const std::lock_guard lock(mutex_);
    events_.clear();
    asked_ = 0;
  }

  /// Number of the guest's last beat, 0 before the first.
  int last_beat(const Id128& uuid) {
    std::ifstream file(config.run_dir / "vms" / uuid.text() / "serial.log");
    int last = 0;
    for (std::string line; std::getline(file, line);) {
      int beat = 0;
      if (std::sscanf(line.c_str(), "beat %d", &beat) == 1) {
        last = beat;
      }
    }
    return last;
  }
  bool wait_beat_after(const Id128& uuid, int beat) {
    const auto until = std::chrono::steady_clock::now() + kPatience;
    while (last_beat(uuid) <= beat) {
      if (std::chrono::steady_clock::now() > until) {
        return false;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // tidy-allow(sleep): polls a bounded wait
    }
    return true;
  }

 private:
  void keep(const controlplane::v1::FromAgent& message) {
    const std::lock_guard lock(mutex_);
    if (message.has_event()) {
      events_.push_back(message.event());
    }
    asked_ += message.has_ask_outcome() ? 1 : 0;
    vm_ended_ = vm_ended_ || message.has_vm_ended();
    changed_.notify_all();
  }

  TempDir dir_;
  TempDir memory_;

 public:
  config::BridgeConfig config;
  FakeDataplane dataplane;
  Journal journal;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Vm> vm_;
  std::vector<Event> events_;
  std::vector<ProcessId> pids_;
  int asked_ = 0;
  bool vm_ended_ = false;
  bool gone_ = false;
  std::unique_ptr<DataplaneClient> client_;
};

}  // namespace godwit::bridge
