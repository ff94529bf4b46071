// QmpClient against a scripted monitor that does everything wrong that a socket can, and against the real one.
#include "qemu-bridge/qmp/qmp_client.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <future>

#include "qemu-bridge/agent/qemu_process.h"
#include "qemu-bridge/qmp/commands.h"
#include "tests/unit/qemu-bridge/owned_qemu.h"
#include "tests/unit/qemu-bridge/temp_dir.h"

namespace godwit::bridge {
namespace {

using std::chrono::milliseconds;

constexpr const char* kGreeting = R"({"QMP":{"version":{},"capabilities":["oob"]}})"
                                  "\n";

/// A monitor that serves one client by a script.
class FakeMonitor {
 public:
  explicit FakeMonitor(std::function<void(FakeMonitor&)> script) : path_(dir_.path() / "qmp.sock") {
    listener_.reset(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof(address.sun_path) - 1);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(::listen(listener_.get(), 1), 0);
    thread_ = std::thread([this, script = std::move(script)] {
      client_.reset(::accept(listener_.get(), nullptr, nullptr));
      accepted_.set_value();
      script(*this);
      std::string rest;
      while (done_.wait_for(milliseconds(0)) != std::future_status::ready && !read_line().empty()) {
      }
    });
  }
  ~FakeMonitor() {
    finish_.set_value();
    ::shutdown(listener_.get(), SHUT_RDWR);  // ends the wait for a client
    accepted_.get_future().wait();
    ::shutdown(client_.get(), SHUT_RDWR);
    thread_.join();
  }
  void write(const std::string& bytes) {
    ASSERT_EQ(::send(client_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }
  void write_until_closed(const std::string& bytes) {
    while (::send(client_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) > 0) {
    }
  }
  std::string read_line() {
    std::string line;
    char c = 0;
    while (::recv(client_.get(), &c, 1, 0) == 1 && c != '\n') {
      line += c;
    }
    return line;
  }
  void close() { ::shutdown(client_.get(), SHUT_RDWR); }
  void greet() {
    write(kGreeting);
    answer();
  }
  /// Answers the next command with `value`.
  void answer(const std::string& value = "{}") { reply(R"("return":)" + value); }
  void reply(const std::string& member) {
    const auto id = json_uint(parse_json(read_line()).value_or(Json()), "id").value_or(0);
    write("{" + member + R"(,"id":)" + std::to_string(id) + "}\n");
  }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  TempDir dir_;
  std::filesystem::path path_;
  UniqueFd listener_;
  UniqueFd client_;
  std::promise<void> accepted_;
  std::promise<void> finish_;
  std::future<void> done_ = finish_.get_future();
  std::thread thread_;
};

TEST(QmpClient, NobodyThere) {
  auto client = QmpClient::connect("/tmp/godwit-no-such.sock", {});
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, QmpErrorCode::kConnect);
  EXPECT_NE(client.error().text.find("/tmp/godwit-no-such.sock"), std::string::npos);
}

TEST(QmpClient, SplitLinesAndEventsBetweenReplies) {
  FakeMonitor monitor([](FakeMonitor& fake) {
    for (const char* c = kGreeting; *c != 0; ++c) {
      fake.write(std::string(1, *c));
    }
    fake.answer();
    const auto id = json_uint(parse_json(fake.read_line()).value_or(Json()), "id").value_or(0);
    fake.write("{\"event\":\"STOP\",\"timestamp\":{\"seconds\":7,\"microsec");
    fake.write("onds\":5}}\r\n{\"event\":\"RESUME\"}\n{\"ret");
    fake.write("urn\":{\"status\":\"paused\"},\"id\":" + std::to_string(id) + "}\n");
  });
  std::vector<QmpEvent> events;
  auto client = QmpClient::connect(monitor.path(), {.on_event = [&](const QmpEvent& e) { events.push_back(e); }});
  ASSERT_TRUE(client) << client.error().text;
  EXPECT_EQ(query_status(**client).value_or(""), "paused");
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].name, "STOP");
  EXPECT_EQ(events[0].unix_us, 7'000'005);
  EXPECT_EQ(events[1].unix_us, 0);
}

TEST(QmpClient, WhatTheClientBeforeLeftUnreadIsDropped) {
  FakeMonitor monitor([](FakeMonitor& fake) {
    fake.write("{\"event\":\"STOP\"}\n{\"return\":{\"status\":\"paused\"},\"id\":1}\n{\"return\":{}}\n");
    fake.write(kGreeting);
    fake.write("{\"error\":{\"desc\":\"of another\"},\"id\":\"libvirt-7\"}\n{\"return\":{},\"id\":2}\n");
    fake.answer();
    fake.write("{\"event\":\"RESUME\"}\n");
    fake.answer(R"({"status":"running"})");
  });
  std::vector<std::string> events;
  auto client = QmpClient::connect(monitor.path(), {.on_event = [&](const QmpEvent& e) { events.push_back(e.name); }});
  ASSERT_TRUE(client) << client.error().text;
  EXPECT_EQ(query_status(**client).value_or(""), "running");
  EXPECT_EQ(events, std::vector<std::string>{"RESUME"});
}

struct BadLine {
  const char* what;
  std::string bytes;
  QmpErrorCode code;
};

class QmpGarbage : public testing::TestWithParam<BadLine> {};

TEST_P(QmpGarbage, ClosesWithACleanError) {
  FakeMonitor monitor([](FakeMonitor& fake) {
    fake.greet();
    fake.read_line();
    fake.write_until_closed(GetParam().bytes);
  });
  std::promise<QmpError> closed;
  auto client =
      QmpClient::connect(monitor.path(), {.on_closed = [&](const QmpError& error) { closed.set_value(error); }});
  ASSERT_TRUE(client);
  auto reply = (*client)->execute("query-status");
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, GetParam().code) << reply.error().text;
  EXPECT_EQ(closed.get_future().get().code, GetParam().code);
  EXPECT_TRUE((*client)->closed());
  EXPECT_EQ((*client)->execute("stop").error().code, GetParam().code) << "and stays closed";
}

INSTANTIATE_TEST_SUITE_P(
    Lines, QmpGarbage,
    testing::Values(
        BadLine{"not JSON", "SSH-2.0-OpenSSH_9.2\n", QmpErrorCode::kProtocol},
        BadLine{"no object", "[1,2]\n", QmpErrorCode::kProtocol},
        BadLine{"unknown id", "{\"return\":{},\"id\":99}\n", QmpErrorCode::kProtocol},
        BadLine{"id of another type", "{\"return\":{},\"id\":\"x\"}\n", QmpErrorCode::kProtocol},
        BadLine{"neither reply nor event", "{\"id\":2}\n", QmpErrorCode::kProtocol},
        BadLine{"a reply nested deeper than any stack",
                "{\"return\":" + std::string(1'000'000, '[') + std::string(1'000'000, ']') + ",\"id\":99}\n",
                QmpErrorCode::kProtocol},
        BadLine{"an event nested deeper than any stack",
                "{\"event\":\"X\",\"data\":" + std::string(1'000'000, '[') + std::string(1'000'000, ']') + "}\n",
                QmpErrorCode::kProtocol},
        BadLine{"deep nesting cut off", std::string(5000, '[') + "\n", QmpErrorCode::kProtocol},
        BadLine{"endless line", std::string(1 << 20, 'x'), QmpErrorCode::kFlood}));

TEST(QmpClient, SilenceIsATimeoutAndTheLateReplyIsDropped) {
  std::promise<void> timed_out;
  FakeMonitor monitor([&](FakeMonitor& fake) {
    fake.greet();
    const auto late = json_uint(parse_json(fake.read_line()).value_or(Json()), "id").value_or(0);
    timed_out.get_future().wait();
    fake.write("{\"return\":{\"status\":\"late\"},\"id\":" + std::to_string(late) + "}\n");
    fake.answer(R"({"status":"running"})");
  });
  auto client = QmpClient::connect(monitor.path(), {});
  ASSERT_TRUE(client);
  auto silent = (*client)->execute("query-status", Json::object(), milliseconds(50));
  ASSERT_FALSE(silent);
  EXPECT_EQ(silent.error().code, QmpErrorCode::kTimeout);
  timed_out.set_value();
  EXPECT_EQ(query_status(**client).value_or(""), "running");
}

TEST(QmpClient, NoGreeting) {
  FakeMonitor monitor([](FakeMonitor&) {});
  auto client = QmpClient::connect(monitor.path(), {}, milliseconds(50));
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, QmpErrorCode::kTimeout);
}

TEST(QmpClient, QemuDiesWhileACommandWaits) {
  FakeMonitor monitor([](FakeMonitor& fake) {
    fake.greet();
    fake.read_line();
    fake.close();
  });
  auto client = QmpClient::connect(monitor.path(), {});
  ASSERT_TRUE(client);
  EXPECT_EQ((*client)->execute("cont").error().code, QmpErrorCode::kClosed);
}

TEST(QmpClient, RefusalCarriesQemusText) {
  FakeMonitor monitor([](FakeMonitor& fake) {
    fake.greet();
    fake.reply(R"("error":{"class":"GenericError","desc":"no such thing"})");
  });
  auto client = QmpClient::connect(monitor.path(), {});
  ASSERT_TRUE(client);
  auto refused = cont(**client);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, QmpErrorCode::kCommand);
  EXPECT_NE(refused.error().text.find("cont: no such thing"), std::string::npos);
}

struct BadReply {
  const char* reply;
};
class QmpBadReplies : public testing::TestWithParam<BadReply> {};

TEST_P(QmpBadReplies, OfTheWrongShapeAreErrorsNotCrashes) {
  FakeMonitor monitor([](FakeMonitor& fake) {
    fake.greet();
    fake.answer(GetParam().reply);
  });
  auto client = QmpClient::connect(monitor.path(), {});
  ASSERT_TRUE(client);
  auto memdev = query_memdev(**client);
  ASSERT_FALSE(memdev);
  EXPECT_EQ(memdev.error().code, QmpErrorCode::kReply);
}

INSTANTIATE_TEST_SUITE_P(Shapes, QmpBadReplies,
                         testing::Values(BadReply{"{}"}, BadReply{"[{\"size\":-1}]"}, BadReply{"[{\"size\":1e300}]"},
                                         BadReply{"[7]"}, BadReply{"\"text\""}, BadReply{"null"}));

TEST(QmpClient, RealQemu) {
  if (::access("/usr/bin/qemu-system-x86_64", X_OK) != 0) {
    GTEST_SKIP() << "no /usr/bin/qemu-system-x86_64";
  }
  TempDir dir;
  const std::string socket = dir.path() / "qmp.sock";
  Launch plan;
  plan.argv = {"/usr/bin/qemu-system-x86_64",
               "-M",
               "pc",
               "-S",
               "-nodefaults",
               "-display",
               "none",
               "-m",
               "32",
               "-accel",
               "tcg",
               "-qmp",
               "unix:" + socket + ",server=on,wait=off"};
  plan.log_file = dir.path() / "log";
  auto process = launch(plan);
  ASSERT_TRUE(process) << process.error();
  const OwnedQemu owned(*process);
  EXPECT_TRUE(is_alive(*process));
  std::promise<void> closed;
  std::promise<QmpEvent> resumed;
  const auto connect = [&] {
    return QmpClient::connect(socket, {.on_event =
                                           [&](const QmpEvent& event) {
                                             if (event.name == "RESUME") {
                                               resumed.set_value(event);
                                             }
                                           },
                                       .on_closed = [&](const QmpError&) { closed.set_value(); }});
  };
  auto client = connect();
  for (int i = 0; i < 500 && !client; ++i) {
    std::this_thread::sleep_for(milliseconds(10));  // tidy-allow(sleep): polls a bounded wait
    client = connect();
  }
  ASSERT_TRUE(client) << client.error().text;
  EXPECT_EQ((*client)->peer_pid(), process->pid);
  EXPECT_EQ(query_status(**client).value_or(""), "prelaunch");
  EXPECT_GE(query_version(**client).value().major, 4);
  EXPECT_TRUE(query_machine_type(**client).value().starts_with("pc-"));
  EXPECT_EQ(query_cpu_count(**client).value(), 1u);
  EXPECT_GT(list_devices(**client).value().size(), 5u);
  EXPECT_TRUE(query_migrate_capabilities(**client).value().contains("x-ignore-shared"));
  EXPECT_TRUE(cont(**client));
  EXPECT_GT(resumed.get_future().get().unix_us, 1'600'000'000'000'000);
  EXPECT_TRUE(quit(**client));
  closed.get_future().wait();
  EXPECT_TRUE(wait_for_exit(*process, milliseconds(5000)));
  EXPECT_FALSE(is_alive(*process));
}

}  // namespace
}  // namespace godwit::bridge
