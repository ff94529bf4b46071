// What QEMU's monitor says, through the whole QmpClient and the inspection of a QEMU. A thread plays the monitor.
// Input: one byte (bit 0: which), then
//   lines of answers: each command gets the next one as its "return"; a line that begins with '!' is sent as it is,
//   before the answer;
//   or any bytes, right after the negotiation.
// Properties: nothing that QEMU says ends or hangs the bridge; a connection closes once, with a reason, and then
// refuses at once; every refusal has a text; what inspection accepts is all file-backed and shared.

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>

#include "qemu-bridge/agent/qemu_inspection.h"
#include "qemu-bridge/qmp/qmp_client.h"
#include "tests/fuzz/fuzz.h"

namespace godwit::fuzz {
namespace {

constexpr std::string_view kGreeting = R"({"QMP": {"version": {}, "capabilities": []}})"
                                       "\n";
/// The monitor never makes the client wait: a reply that takes so long is a hang.
constexpr std::chrono::milliseconds kReplyTime{20'000};

std::string socket_path() { return "/tmp/godwit-fuzz-qmp-" + std::to_string(getpid()); }

/// One monitor, for all runs: it listens once and serves one connection after the other.
class Monitor {
 public:
  Monitor() : listener_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = socket_path();
    std::ranges::copy(path, std::begin(address.sun_path));
    ::unlink(path.c_str());
    FUZZ_CHECK(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    FUZZ_CHECK(::listen(listener_.get(), 1) == 0);
    std::atexit([] { ::unlink(socket_path().c_str()); });
  }

  /// Serves one connection to its end, in the calling thread.
  void serve(bool raw, std::string_view script) {
    const UniqueFd connection(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    FUZZ_CHECK(connection.valid());
    connection_ = connection.get();
    script_ = script;
    pending_.clear();
    say(kGreeting);
    if (!answer("{}")) {
      return;
    }
    if (raw) {
      say(script);
      return;  // and hangs up
    }
    while (answer(next_line())) {
    }
  }

 private:
  void say(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(connection_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) {
        return;  // the client has closed
      }
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
  }

  std::string_view next_line() {
    while (script_.starts_with('!')) {
      say(take_line().substr(1));
      say("\n");
    }
    return script_.empty() ? "null" : take_line();
  }
  std::string_view take_line() {
    const auto line = script_.substr(0, script_.find('\n'));
    script_.remove_prefix(std::min(script_.size(), line.size() + 1));
    return line;
  }

  /// Waits for a command and answers it; false: the client is gone.
  bool answer(std::string_view value) {
    std::size_t end = 0;
    while ((end = pending_.find('\n')) == std::string::npos) {
      std::array<char, 4096> buffer;
      const ssize_t got = ::recv(connection_, buffer.data(), buffer.size(), 0);
      if (got <= 0) {
        return false;
      }
      pending_.append(buffer.data(), static_cast<std::size_t>(got));
    }
    const auto command = bridge::parse_json(std::string_view(pending_).substr(0, end));
    FUZZ_CHECK(command && bridge::json_string(*command, "execute"));
    const auto id = bridge::json_uint(*command, "id");
    FUZZ_CHECK(id);
    pending_.erase(0, end + 1);
    say(R"({"return": )");
    say(value);
    say(R"(, "id": )" + std::to_string(*id) + "}\n");
    return true;
  }

  UniqueFd listener_;
  int connection_ = -1;
  std::string_view script_;
  std::string pending_;
};

struct Seen {
  std::atomic<int> closed{0};
  std::atomic<int> events{0};
};

void check_facts(const bridge::QemuFacts& facts) {
  FUZZ_CHECK(!facts.backends.empty());
  for (const auto& backend : facts.backends) {
    FUZZ_CHECK(backend.share && (backend.type == "memory-backend-file" || backend.type == "memory-backend-memfd"));
  }
}

/// What the bridge asks of a QEMU; every refusal says something.
void inspect(bridge::QmpClient& qmp) {
  const auto facts = bridge::inspect_qemu(qmp);
  if (facts) {
    check_facts(*facts);
  } else {
    FUZZ_CHECK(!facts.error().text.empty());
  }
  const auto movable = bridge::check_still_movable(qmp, {.has_balloon = true, .by_hashes = true});
  FUZZ_CHECK(movable || !movable.error().text.empty());
  const auto machines = bridge::query_machines(qmp);
  const auto chardevs = bridge::query_chardev(qmp);
  const auto files = bridge::query_block_files(qmp);
  const auto set = bridge::set_migration_capabilities(qmp);
  for (const auto* error : {machines ? nullptr : &machines.error(), chardevs ? nullptr : &chardevs.error(),
                            files ? nullptr : &files.error(), set ? nullptr : &set.error()}) {
    FUZZ_CHECK(error == nullptr || (!error->text.empty() && error->code != bridge::QmpErrorCode::kTimeout));
  }
}

void meet(Seen& seen) {
  const bridge::QmpClient::Handlers handlers{[&seen](const bridge::QmpEvent& event) {
                                               FUZZ_CHECK(event.unix_us >= 0);
                                               ++seen.events;
                                             },
                                             [&seen](const bridge::QmpError& error) {
                                               FUZZ_CHECK(!error.text.empty());
                                               ++seen.closed;
                                             }};
  const auto client = bridge::QmpClient::connect(socket_path(), handlers, kReplyTime);
  if (!client) {
    FUZZ_CHECK(!client.error().text.empty() && client.error().code != bridge::QmpErrorCode::kTimeout);
    return;
  }
  inspect(**client);
  if ((*client)->closed()) {
    const auto refused = (*client)->execute("query-status");
    FUZZ_CHECK(!refused && !refused.error().text.empty());
  }
}

Seed seed(std::string name, bool raw, std::string_view script) {
  return {std::move(name), Output().number<std::uint8_t>(raw ? 1 : 0).text(script).take()};
}

}  // namespace

void run(Bytes bytes) {
  static Monitor& monitor = *new Monitor();  // never destroyed: a run may end the process
  Input input(bytes);
  const bool raw = input.flag();
  const std::string_view script = as_text(input.rest());
  Seen seen;
  std::thread server([&] { monitor.serve(raw, script); });
  meet(seen);
  server.join();
  FUZZ_CHECK(seen.closed <= 1);
  FUZZ_CHECK(seen.events <= std::ranges::count(script, '\n') + 1);
}

std::vector<Seed> seeds() {
  constexpr std::string_view kGood =
      R"({"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian"}
[{"capability": "x-ignore-shared", "state": false}, {"capability": "events", "state": true}]
[{"id": "ram0", "size": 67108864, "share": true}]
"memory-backend-file"
"/dev/shm/ram0"
!{"event": "STOP", "data": {}, "timestamp": {"seconds": 1700000000, "microseconds": 5}}
{"base-memory": 67108864, "plugged-memory": 0}
[{"name": "net0", "type": "child<virtio-net-pci>"}]
[]
[{"name": "device[0]", "type": "child<i440FX>"}]
"hub 0\n  net0: index=0,type=user"
[{"node-name": "disk", "cache": {"direct": false}}]
{"status": "none"}
"pc-i440fx-7.2-machine"
{"status": "running"}
[{}, {}]
{"UUID": "6f1a2b3c-0000-4000-8000-000000000001"}
{"enabled": false}
)";
  constexpr std::string_view kEvents =
      "{\"event\": \"RESUME\", \"data\": {\"a\": [1, {}]}, \"timestamp\": {\"seconds\": 1, \"microseconds\": -1}}\r\n"
      "\r\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 2}\n{\"return\": {}, \"id\": 99}\n";
  const std::string deep = "{\"event\": \"X\", \"data\": " + std::string(3000, '[') + std::string(3000, ']') + "}\n";
  return {seed("inspection", false, kGood), seed("events", true, kEvents), seed("deep", true, deep)};
}

}  // namespace godwit::fuzz
