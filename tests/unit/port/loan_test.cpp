// Frames that refer to memory, over net_ring: a driver that keeps buffers until somebody has read them. Goal: the frame
// is what was committed, and the memory's owner is let go when nobody refers to it any more, not before.

#include "dataplane/port/loan.h"

#include <gtest/gtest.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_memory.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>

#include "dataplane/port/port.h"

namespace godwit::port {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kTail = 16;

using Ram = std::vector<std::byte>;

class LoanTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    EnvironmentOptions options;
    options.hugepages = false;
    options.memory_mb = 64;
    options.log_level = "error";
    options.lcores = {{0, {}}};
    options.vdevs = {"net_ring0"};
    auto started = Environment::start(options);
    ASSERT_TRUE(started) << started.error().text;
    environment_.emplace(std::move(*started));
    PortOptions port;
    port.driver = Driver::kOther;
    port.device = "net_ring0";
    port.mtu = 9000;
    auto opened = Port::open(port);
    ASSERT_TRUE(opened) << opened.error().text;
    port_ = std::move(*opened);
  }
  static void TearDownTestSuite() {
    port_.reset();
    environment_.reset();
  }

  void SetUp() override {
    auto ram = std::make_shared<Ram>(3 * kPage);
    for (std::size_t i = 0; i < ram->size(); ++i) {
      (*ram)[i] = static_cast<std::byte>(i * 131 >> 4);
    }
    ram_ = ram;
    owner_ = ram;
    auto lent = port_->lend(ram, {*ram});
    ASSERT_TRUE(lent) << lent.error().text;
    EXPECT_FALSE((*lent)->usable());
    ASSERT_TRUE((*lent)->make_usable());
    EXPECT_TRUE((*lent)->usable());
    loan_ = std::move(*lent);
  }
  void TearDown() override {
    loan_.reset();
    owner_.reset();
    EXPECT_EQ(port_->end_loans(), 0U);
    EXPECT_TRUE(ram_.expired());
  }

  /// Page 2, page 0, and the rest from the queue's own buffer.
  void commit() {
    Queue& queue = port_->queue(0);
    const std::span<std::byte> frame = queue.next_frame(Priority::kBulk);
    ASSERT_FALSE(frame.empty());
    std::fill_n(frame.begin(), 100, std::byte{0x11});
    std::fill_n(frame.begin() + 100, kTail, std::byte{0x22});
    ASSERT_TRUE(queue.can_refer());
    const std::array<std::span<const std::byte>, 2> pieces{std::span(*owner_).subspan(2 * kPage, kPage),
                                                           std::span(*owner_).first(kPage)};
    queue.commit_referring(Priority::kBulk, 100 + kTail, kTail, pieces, *loan_);
  }
  void drop() {
    loan_.reset();
    owner_.reset();
  }
  static rte_mbuf* take() {
    rte_mbuf* buffer = nullptr;
    EXPECT_EQ(rte_eth_rx_burst(0, 0, &buffer, 1), 1);
    return buffer;
  }

  static inline std::optional<Environment> environment_;
  static inline std::unique_ptr<Port> port_;
  std::shared_ptr<Ram> owner_;
  std::weak_ptr<Ram> ram_;
  std::shared_ptr<const Loan> loan_;
};

TEST_F(LoanTest, TheFrameIsHeadPiecesAndTail) {
  commit();
  ASSERT_TRUE(port_->queue(0).flush());
  rte_mbuf* const buffer = take();
  ASSERT_NE(buffer, nullptr);
  std::vector<std::byte> expected(100, std::byte{0x11});
  expected.insert(expected.end(), owner_->begin() + 2 * kPage, owner_->end());
  expected.insert(expected.end(), owner_->begin(), owner_->begin() + kPage);
  expected.insert(expected.end(), kTail, std::byte{0x22});
  std::vector<std::byte> got(expected.size());
  ASSERT_EQ(rte_pktmbuf_pkt_len(buffer), expected.size());
  const void* const read = rte_pktmbuf_read(buffer, 0, static_cast<std::uint32_t>(got.size()), got.data());
  EXPECT_EQ(read, got.data());
  EXPECT_EQ(got, expected);
  const char* why = nullptr;
  EXPECT_EQ(rte_mbuf_check(buffer, 1, &why), 0) << why;
  rte_pktmbuf_free(buffer);
}

TEST_F(LoanTest, MemoryStaysWhileAFrameWaitsInTheQueue) {
  commit();
  drop();
  EXPECT_EQ(port_->end_loans(), 1U);
  EXPECT_FALSE(ram_.expired());
  ASSERT_TRUE(port_->queue(0).flush());
  rte_pktmbuf_free(take());
}

TEST_F(LoanTest, MemoryStaysWhileTheDriverHasAFrame) {
  commit();
  commit();
  ASSERT_TRUE(port_->queue(0).flush());
  drop();
  rte_mbuf* const first = take();
  rte_mbuf* const second = take();
  EXPECT_EQ(port_->end_loans(), 1U);
  rte_pktmbuf_free(first);
  EXPECT_EQ(port_->end_loans(), 1U);
  EXPECT_FALSE(ram_.expired());
  rte_pktmbuf_free(second);
}

TEST_F(LoanTest, MemoryStaysWhileSomebodyMaySendFromIt) {
  owner_.reset();
  EXPECT_EQ(port_->end_loans(), 1U);
  EXPECT_FALSE(ram_.expired());
}

/// Memory as it is lent to a NIC, and the device of a driver that takes whatever is mapped for it.
struct Nic {
  static constexpr std::size_t kHuge = 2U << 20;
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };

  Nic() : memory(static_cast<std::byte*>(std::aligned_alloc(kHuge, 2 * kHuge))) {
    rte_eth_dev_info info{};
    EXPECT_EQ(rte_eth_dev_info_get(0, &info), 0);
    loans.allow(1, info.device);
  }
  [[nodiscard]] bool registered(std::size_t offset) const {
    return rte_mem_virt2memseg_list(memory.get() + offset) != nullptr;
  }
  [[nodiscard]] std::span<const std::byte> piece(std::size_t offset, std::size_t bytes) const {
    return {memory.get() + offset, bytes};
  }
  std::unique_ptr<std::byte, Free> memory;
  Loans loans;
};

TEST_F(LoanTest, ToANicMemoryIsRegisteredUntilTheLastFrameIsBack) {
  Nic nic;
  auto loan = nic.loans.lend(nullptr, {nic.piece(0, Nic::kHuge), nic.piece(Nic::kHuge, Nic::kHuge)});
  ASSERT_TRUE(loan);
  EXPECT_FALSE(nic.registered(0));
  const auto usable = (*loan)->make_usable();
  ASSERT_TRUE(usable) << usable.error().text;
  EXPECT_TRUE((*loan)->usable());
  rte_mempool* const pool = rte_pktmbuf_pool_create("nic", 63, 0, 0, RTE_PKTMBUF_HEADROOM + 64, SOCKET_ID_ANY);
  ASSERT_NE(pool, nullptr);
  rte_mbuf* const frame = rte_pktmbuf_alloc(pool);
  static_cast<const LoanImpl&>(**loan).attach(frame, 0, nic.piece(Nic::kHuge, kPage));
  EXPECT_EQ(rte_pktmbuf_iova(frame), reinterpret_cast<rte_iova_t>(nic.memory.get() + Nic::kHuge));
  EXPECT_EQ(nic.loans.end(), 1U);
  EXPECT_FALSE(nic.loans.wanted_back()) << "somebody may send from it yet";
  loan->reset();
  EXPECT_EQ(nic.loans.end(), 1U);
  EXPECT_TRUE(nic.loans.wanted_back());
  EXPECT_TRUE(nic.registered(0) && nic.registered(Nic::kHuge));
  rte_pktmbuf_free(frame);
  EXPECT_TRUE(nic.registered(0)) << "the control thread takes it back";
  EXPECT_EQ(nic.loans.end(), 0U);
  EXPECT_FALSE(nic.loans.wanted_back());
  EXPECT_FALSE(nic.registered(0) || nic.registered(Nic::kHuge));
  rte_mempool_free(pool);
}

TEST_F(LoanTest, ToANicWhatIsRefusedIsRefusedWhole) {
  Nic nic;
  for (const std::size_t bytes : {kPage, Nic::kHuge}) {  // small pages; memory that is registered already
    auto loan =
        nic.loans.lend(nullptr, {nic.piece(0, Nic::kHuge), nic.piece(bytes == Nic::kHuge ? 0 : Nic::kHuge, bytes)});
    ASSERT_TRUE(loan);
    EXPECT_FALSE((*loan)->make_usable());
    EXPECT_FALSE((*loan)->usable());
    EXPECT_FALSE(nic.registered(0));
  }
}

TEST_F(LoanTest, WithoutBuffersTheAnswerIsToCopy) {
  Queue& queue = port_->queue(0);
  std::vector<rte_mbuf*> kept;
  for (int i = 0; i < 4096 && queue.can_refer(); ++i) {
    commit();
    ASSERT_TRUE(queue.flush());
    kept.push_back(take());
  }
  EXPECT_FALSE(queue.can_refer());
  for (rte_mbuf* buffer : kept) {
    rte_pktmbuf_free(buffer);
  }
  EXPECT_TRUE(queue.can_refer());
}

}  // namespace
}  // namespace godwit::port
