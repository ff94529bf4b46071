#pragma once
// DataplaneClient: this host's data plane, over its SOCK_SEQPACKET socket (dataplane.proto). Owns the connection and
// one thread that connects, says Hello, reads, and starts over for ever when the data plane goes away. Threads: call()
// and post() from any thread but that one; the handlers run in that one, in the order of the datagrams, and must not
// block for long nor call(). While the data plane is down every request fails at once with code INTERNAL and a text
// that says so; requests under way when it goes fail alike. A datagram that is not a FromDataplane, or is cut off,
// closes the connection: the next one starts clean.

#include <chrono>
#include <condition_variable>
#include <expected>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>

#include "base/unique_fd.h"
#include "dataplane.pb.h"

namespace godwit::bridge {

class DataplaneClient {
 public:
  static constexpr std::size_t kDatagramBytesMax = 256u << 10;
  static constexpr std::chrono::milliseconds kReplyTime{30'000};

  using Error = dataplane::v1::Error;
  using Reply = dataplane::v1::Reply;
  using Request = dataplane::v1::ToDataplane;
  using OnReply = std::function<void(std::expected<Reply, Error>)>;

  struct Handlers {
    std::function<void(const dataplane::v1::HelloResult&)> on_up;
    std::function<void(const std::string& reason)> on_down;
    std::function<void(dataplane::v1::Event)> on_event;
  };

  DataplaneClient(std::string path, Handlers handlers);
  ~DataplaneClient();
  /// Begins to connect; the handlers run from now on.
  void start();
  DataplaneClient(const DataplaneClient&) = delete;
  DataplaneClient& operator=(const DataplaneClient&) = delete;

  /// Sends and waits for the reply. Descriptors are duplicated by the kernel; ours stay ours.
  std::expected<Reply, Error> call(Request request, std::span<const int> descriptors = {},
                                   std::chrono::milliseconds time = kReplyTime);
  /// Sends; `on_reply` runs in the client's thread (or in this one if it could not be sent). Blocks while the data
  /// plane's socket is full.
  void post(Request request, OnReply on_reply);

  [[nodiscard]] std::optional<dataplane::v1::HelloResult> hello() const;
  /// Blocks until it is connected, at most `time`. Not from the client's thread.
  void wait_until_up(std::chrono::milliseconds time);

 private:
  void run();
  std::optional<std::string> read_datagrams();
  void deliver(dataplane::v1::FromDataplane message);
  void disconnect(const std::string& reason);
  std::expected<void, Error> send(Request& request, std::span<const int> descriptors, OnReply on_reply);

  const std::string path_;
  const Handlers handlers_;
  const UniqueFd wake_;  // eventfd: ends the thread

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<UniqueFd> socket_;  // shared with a send under way
  std::map<std::uint64_t, OnReply> waiting_;
  std::uint64_t next_id_ = 1;
  std::optional<dataplane::v1::HelloResult> hello_;
  bool stopping_ = false;
  std::uint64_t hello_id_ = 0;  // of the client's thread alone

  std::mutex send_mutex_;  // keeps the order of datagrams the order of ids
  std::thread thread_;
};

/// "NO_MEMORY: text", for logs.
std::string text_of(const dataplane::v1::Error& error);
dataplane::v1::Error make_error(dataplane::v1::Error::Code code, std::string text);

}  // namespace godwit::bridge
