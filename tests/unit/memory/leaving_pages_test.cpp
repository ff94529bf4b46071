// Pages on their way out, and what a successor finds of them, whenever its predecessor died.

#include "dataplane/memory/leaving_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "tests/unit/memory/own_ram.h"

namespace godwit::memory::test {
namespace {

constexpr std::size_t kPage = pages::kPageSize;
constexpr std::uint64_t kPages = 64;
constexpr std::uint32_t kSlots = 16;

class LeavingPagesTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(own_);
    auto ram = GuestRam::open(own_->region_files());
    ASSERT_TRUE(ram);
    ram_.emplace(std::move(*ram));
    for (std::uint64_t page = 0; page < kPages; ++page) {
      std::memset(own_->data() + page * kPage, static_cast<int>(page + 1), kPage);
    }
    auto pipe = PinPipe::make();
    ASSERT_TRUE(pipe);
    kept_ = std::move(*pipe);
    auto made = LeavingPages::create(file_, of(), kSlots, duplicate(), 1);
    ASSERT_TRUE(made) << made.error().text;
    leaving_.emplace(std::move(*made));
  }
  void TearDown() override {
    leaving_.reset();
    EXPECT_TRUE(GuestStateFile::remove(file_));
  }

  static MissingOf of() {
    MissingOf of;
    of.page_count = kPages;
    return of;
  }
  [[nodiscard]] PinPipe duplicate() const {
    return {UniqueFd(fcntl(kept_.read.get(), F_DUPFD_CLOEXEC, 0)),
            UniqueFd(fcntl(kept_.write.get(), F_DUPFD_CLOEXEC, 0))};
  }
  /// What remains of a process that is killed now.
  std::expected<void, Error> die_and_come_back() {
    leaving_.reset();
    auto adopted = LeavingPages::adopt(file_, of(), kSlots, duplicate(), missing_);
    if (!adopted) {
      return std::unexpected(adopted.error());
    }
    leaving_.emplace(std::move(*adopted));
    return {};
  }
  void take_out(pages::PageNumber page) {
    missing_.set(page);
    ASSERT_TRUE(ram_->punch(page, 1));
  }
  void expect_content(pages::PageNumber page) {
    std::vector<std::byte> content(kPage);
    ASSERT_TRUE(leaving_->find(page, std::span(content).first<kPage>())) << page;
    EXPECT_EQ(content, std::vector<std::byte>(kPage, static_cast<std::byte>(page + 1))) << page;
  }
  [[nodiscard]] bool has(pages::PageNumber page) const {
    std::vector<std::byte> content(kPage);
    return leaving_->find(page, std::span(content).first<kPage>()).has_value();
  }

  const std::string file_ = "/dev/shm/godwit-test-leaving-" + std::to_string(getpid());
  std::optional<OwnRam> own_ = OwnRam::on_tmpfs(kPages * kPage);
  std::optional<GuestRam> ram_;
  PinPipe kept_;  // as somebody else keeps it
  std::optional<LeavingPages> leaving_;
  pages::Bitmap missing_{kPages};
  const std::vector<pages::PageNumber> batch_{3, 4, 5, 20, 31};
};

TEST_F(LeavingPagesTest, WheneverTheProcessDiesEachPageIsInOnePlace) {
  // Moments: 0 entered, 1 pinned, 2 to 6 so many pages punched less one, 7 to 11 all punched and so many read.
  for (int moment = 0; moment <= 11; ++moment) {
    missing_.clear_all();
    leaving_->begin(batch_);
    if (moment >= 1) {
      const auto pinned = leaving_->pin(*ram_);
      ASSERT_TRUE(pinned && *pinned == batch_.size());
    }
    const auto punched = static_cast<std::size_t>(std::clamp(moment - 1, 0, 5));
    for (std::size_t i = 0; i < punched; ++i) {
      take_out(batch_[i]);
    }
    if (moment >= 7) {
      ASSERT_TRUE(leaving_->read_pinned(static_cast<std::uint32_t>(moment - 6)));
    }
    const auto back = die_and_come_back();
    ASSERT_TRUE(back) << moment << ": " << back.error().text;
    for (const pages::PageNumber page : batch_) {
      ASSERT_EQ(has(page), missing_.test(page)) << "moment " << moment << ", page " << page;
      if (missing_.test(page)) {
        expect_content(page);
        std::memset(own_->data() + page * kPage, static_cast<int>(page + 1), kPage);
      }
    }
    // And it goes on: all slots, and the pipe, are as if nothing had been.
    for (const LeavingPage& page : leaving_->all()) {
      EXPECT_TRUE(leaving_->forget(page.page, page.version));
    }
    ASSERT_EQ(leaving_->free(), kSlots);
  }
}

TEST_F(LeavingPagesTest, WhatIsHereOutlivesTheProcessUnlessItIsBack) {
  leaving_->begin(batch_);
  ASSERT_TRUE(leaving_->pin(*ram_));
  for (const pages::PageNumber page : batch_) {
    take_out(page);
  }
  ASSERT_TRUE(leaving_->read_pinned(5));
  std::vector<LeavingPage> out;
  const bool stays[] = {true, true, false, true, true};
  leaving_->finish(stays, out);
  ASSERT_EQ(out.size(), 4U);
  missing_.clear(4);  // placed back, and nobody had the time to say so
  missing_.clear(5);
  ASSERT_TRUE(leaving_->forget(31, out.back().version));
  ASSERT_TRUE(die_and_come_back());
  EXPECT_EQ(leaving_->all().size(), 2U);
  expect_content(3);
  expect_content(20);
  EXPECT_EQ(leaving_->free(), kSlots - 2);
}

TEST_F(LeavingPagesTest, TheLastVersionCounts) {
  const std::vector<pages::PageNumber> one{7};
  const bool stays[] = {true};
  std::vector<LeavingPage> out;
  for (int version = 0; version < 2; ++version) {
    leaving_->begin(one);
    ASSERT_TRUE(leaving_->pin(*ram_));
    take_out(7);
    ASSERT_TRUE(leaving_->read_pinned(1));
    leaving_->finish(stays, out);
    std::memset(own_->data() + 7 * kPage, 8, kPage);
  }
  EXPECT_LT(out[0].version, out[1].version);
  EXPECT_FALSE(leaving_->forget(7, out[0].version)) << "a late confirmation of an earlier one";
  expect_content(7);
  EXPECT_EQ(leaving_->free(), kSlots - 1);
  const std::uint64_t last = out[1].version;
  ASSERT_TRUE(die_and_come_back());
  out.clear();
  leaving_->begin(one);
  ASSERT_TRUE(leaving_->pin(*ram_));
  ASSERT_TRUE(leaving_->read_pinned(1));
  leaving_->finish(stays, out);
  EXPECT_GT(out[0].version, last) << "versions go on where they were";
}

TEST_F(LeavingPagesTest, WhatCannotBeIsRefused) {
  const auto damage = [&](std::size_t offset, std::uint64_t value) {
    std::fstream file(file_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(4096 + offset));
    file.write(reinterpret_cast<const char*>(&value), sizeof value);
  };
  damage(8, 3);  // a batch of three, of which there is nothing, in the pipe neither: that may be
  ASSERT_TRUE(die_and_come_back());
  damage(8, 1000);
  auto refused = die_and_come_back();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kBadArgument);
  EXPECT_NE(refused.error().text.find("does not fit"), std::string::npos) << refused.error().text;
  damage(8, 0);
  damage(4096, kPages);  // page of the first slot
  damage(4096 + 16, 2);
  refused = die_and_come_back();
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().text.find("slot 0"), std::string::npos) << refused.error().text;
  damage(4096 + 16, 0);
  ASSERT_EQ(write(kept_.write.get(), "x", 1), 1);
  ASSERT_EQ(write(kept_.write.get(), std::vector<char>(kPage).data(), kPage), static_cast<ssize_t>(kPage));
  EXPECT_FALSE(die_and_come_back()) << "more in the pipe than the file says";
}

// Above 1 MiB the kernel asks for CAP_SYS_RESOURCE.
TEST(PinPipe, AnybodyMayHaveOneThatTakesAWholeBatch) {
  const auto own = OwnRam::on_tmpfs(LeavingPages::kBatchPagesMax * kPage);
  ASSERT_TRUE(own);
  const pid_t child = fork();
  if (child == 0) {
    constexpr uid_t kNobody = 65534;
    if (setresuid(kNobody, kNobody, kNobody) != 0) {
      _exit(1);
    }
    const auto pipe = PinPipe::make();
    const iovec batch{own->data(), LeavingPages::kBatchPagesMax * kPage};
    if (!pipe || fcntl(pipe->write.get(), F_GETPIPE_SZ) < static_cast<int>(batch.iov_len)) {
      _exit(2);
    }
    const ssize_t pinned = vmsplice(pipe->write.get(), &batch, 1, SPLICE_F_NONBLOCK);
    _exit(pinned == static_cast<ssize_t>(batch.iov_len) ? 0 : 3);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -1, 0)
      << "1: no such user; 2: no such pipe; 3: not all in one step";
}

}  // namespace
}  // namespace godwit::memory::test
