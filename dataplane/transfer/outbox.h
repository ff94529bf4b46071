#pragma once
// Messages that wait for room on the priority lane, in order. Owned by one end of a migration, on its lcore; allocates.

#include <deque>
#include <vector>

#include "dataplane/transport/lane.h"
#include "dataplane/wire/messages.h"

namespace godwit::transfer {

class Outbox {
 public:
  void push(const wire::Message& message) { push_encoded(wire::encode_message(message)); }
  void push_encoded(std::vector<std::byte> bytes) {
    bytes_ += bytes.size();
    queue_.push_back(std::move(bytes));
  }
  void clear() {
    queue_.clear();
    bytes_ = 0;
  }
  /// Gives the lane what it has room for.
  void pump(transport::Lane& lane) {
    while (!queue_.empty() && lane.message_room() >= queue_.front().size() && lane.send_message(queue_.front())) {
      bytes_ -= queue_.front().size();
      queue_.pop_front();
    }
  }
  [[nodiscard]] bool empty() const { return queue_.empty(); }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  std::deque<std::vector<std::byte>> queue_;
  std::size_t bytes_ = 0;
};

}  // namespace godwit::transfer
