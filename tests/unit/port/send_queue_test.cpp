// Urgent frames go first, each kind keeps its order, and a full driver delays bulk only.

#include "dataplane/port/send_queue.h"

#include <gtest/gtest.h>

#include <vector>

namespace godwit::port {
namespace {

using Queue = SendQueue<int, 4>;

std::vector<int> waiting(Queue& queue) { return {queue.frames().begin(), queue.frames().end()}; }

TEST(SendQueue, UrgentFramesPassBulkThatWaits) {
  Queue queue;
  for (const int frame : {1, 2, 3, 4}) {
    queue.push(Priority::kBulk, frame);
  }
  EXPECT_FALSE(queue.has_room(Priority::kBulk));
  for (const int frame : {10, 11}) {
    ASSERT_TRUE(queue.has_room(Priority::kUrgent)) << "bulk takes no urgent frame's room";
    queue.push(Priority::kUrgent, frame);
  }
  EXPECT_EQ(waiting(queue), (std::vector{10, 11, 1, 2, 3, 4}));
  EXPECT_EQ(queue.waiting(Priority::kUrgent), 2U);
  EXPECT_EQ(queue.waiting(Priority::kBulk), 4U);
  queue.pop(1);  // the driver took one
  queue.push(Priority::kUrgent, 12);
  EXPECT_EQ(waiting(queue), (std::vector{11, 12, 1, 2, 3, 4}));
  queue.pop(3);
  queue.push(Priority::kUrgent, 13);
  queue.push(Priority::kBulk, 5);
  EXPECT_EQ(waiting(queue), (std::vector{13, 2, 3, 4, 5}));
  queue.pop(5);
  EXPECT_TRUE(queue.empty());
}

TEST(SendQueue, BothKindsFull) {
  Queue queue;
  for (int i = 0; i < 4; ++i) {
    queue.push(Priority::kBulk, i);
    queue.push(Priority::kUrgent, 10 + i);
  }
  EXPECT_FALSE(queue.has_room(Priority::kBulk));
  EXPECT_FALSE(queue.has_room(Priority::kUrgent));
  EXPECT_EQ(waiting(queue), (std::vector{10, 11, 12, 13, 0, 1, 2, 3}));
}

}  // namespace
}  // namespace godwit::port
