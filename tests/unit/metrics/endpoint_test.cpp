#include "metrics/endpoint.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <atomic>

#include "base/unique_fd.h"

namespace godwit::metrics {
namespace {

constexpr Metric kCount{"a_total", Kind::kCounter, "name", "what it counts"};
constexpr Metric kTimes{"b_seconds", Kind::kHistogram, "", "how long"};
constexpr std::array kAll{&kCount, &kTimes};

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

/// A port that nobody has at the moment.
std::uint16_t free_port() {
  const UniqueFd probe(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = loopback(0);
  socklen_t length = sizeof address;
  EXPECT_EQ(bind(probe.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(getsockname(probe.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  return ntohs(address.sin_port);
}

/// Sends `request` as it is; what comes back until the other side closes.
std::string ask(std::uint16_t port, const std::string& request) {
  const UniqueFd connection(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in address = loopback(port);
  if (connect(connection.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return "not connected";
  }
  [[maybe_unused]] const auto sent = send(connection.get(), request.data(), request.size(), MSG_NOSIGNAL);
  shutdown(connection.get(), SHUT_WR);
  std::string answer;
  std::array<char, 4096> piece{};
  for (ssize_t got = 0; (got = recv(connection.get(), piece.data(), piece.size(), 0)) > 0;) {
    answer.append(piece.data(), static_cast<std::size_t>(got));
  }
  return answer;
}

const std::string kGet = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

TEST(Endpoint, AnswersWithTheSamplesOfTheMoment) {
  std::atomic<int> reads{0};
  const std::uint16_t port = free_port();
  const auto endpoint = Endpoint::open("127.0.0.1:" + std::to_string(port), [&reads] {
    Samples samples(kAll);
    samples.add(kCount, {"a \"quoted\"\nname"}, static_cast<std::uint64_t>(++reads));
    Histogram times({0.5, 2});
    times.observe(1);
    times.observe(3);
    samples.add(kTimes, {}, times);
    return samples;
  });
  ASSERT_TRUE(endpoint) << endpoint.error();
  for (const std::string count : {"1", "2"}) {
    const std::string answer = ask(port, kGet);
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 200")) << answer;
    EXPECT_NE(answer.find("# TYPE a_total counter\na_total{name=\"a \\\"quoted\\\"\\nname\"} " + count + "\n"),
              std::string::npos)
        << answer;
    for (const char* line :
         {"# TYPE b_seconds histogram\n", "b_seconds_count 2\n", "b_seconds_sum 4\n",
          "b_seconds_bucket{le=\"0.5\"} 0\n", "b_seconds_bucket{le=\"2\"} 1\n", "b_seconds_bucket{le=\"+Inf\"} 2\n"}) {
      EXPECT_NE(answer.find(line), std::string::npos) << line << " in\n" << answer;
    }
  }
}

TEST(Endpoint, GarbageIsRefusedAndReadsNothing) {
  std::atomic<int> reads{0};
  const std::uint16_t port = free_port();
  const auto endpoint = Endpoint::open("127.0.0.1:" + std::to_string(port), [&reads] {
    ++reads;
    return Samples(kAll);
  });
  ASSERT_TRUE(endpoint) << endpoint.error();
  const std::string none(1000, '\0');
  for (const std::string& request :
       {none, "GET /" + std::string(100'000, 'a') + " HTTP/1.1\r\n\r\n",
        std::string("GET /../../etc/passwd HTTP/1.1\r\n\r\n"), std::string("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        std::string("BREW /metrics HTTP/1.1\r\nHost: x\r\n\r\n")}) {
    const std::string answer = ask(port, request);
    EXPECT_FALSE(answer.starts_with("HTTP/1.1 200")) << request.substr(0, 40) << "\n" << answer;
  }
  EXPECT_EQ(reads, 0);
  EXPECT_TRUE(ask(port, kGet).starts_with("HTTP/1.1 200"));
  EXPECT_EQ(reads, 1);
}

TEST(Endpoint, SaysWhichAddressIsTaken) {
  const std::uint16_t port = free_port();
  const std::string address = "127.0.0.1:" + std::to_string(port);
  auto first = Endpoint::open(address, [] { return Samples(kAll); });
  ASSERT_TRUE(first) << first.error();
  const auto second = Endpoint::open(address, [] { return Samples(kAll); });
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().find(address), std::string::npos) << second.error();
  first->reset();
  EXPECT_TRUE(Endpoint::open(address, [] { return Samples(kAll); }));
}

}  // namespace
}  // namespace godwit::metrics
