#include "base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <cstdlib>

namespace godwit {
namespace {

TEST(Log, LevelsHaveNames) {
  for (const auto name : kLogLevelNames) {
    const auto level = parse_log_level(name);
    ASSERT_TRUE(level) << name;
    EXPECT_EQ(log_level_name(*level), name);
  }
  EXPECT_FALSE(parse_log_level("INFO"));
  EXPECT_FALSE(parse_log_level(""));
}

TEST(Log, LineNamesComponentAndLevel) {
  ::unsetenv("JOURNAL_STREAM");
  testing::internal::CaptureStderr();
  start_logging("godwit-test", LogLevel::kInfo);
  spdlog::debug("hidden");
  spdlog::warn("seen {}", 7);
  set_log_level(LogLevel::kDebug);
  spdlog::debug("now");
  const auto out = testing::internal::GetCapturedStderr();
  EXPECT_THAT(out, testing::ContainsRegex("^[0-9-]+T[0-9:.]+Z godwit-test\\[[0-9]+\\] warning: seen 7\n"));
  EXPECT_THAT(out, testing::HasSubstr("debug: now"));
  EXPECT_THAT(out, testing::Not(testing::HasSubstr("hidden")));
}

TEST(Log, JournalGetsPriorities) {
  testing::internal::CaptureStderr();
  struct stat status {};
  ASSERT_EQ(::fstat(2, &status), 0);
  const auto stream = std::to_string(status.st_dev) + ":" + std::to_string(status.st_ino);
  ::setenv("JOURNAL_STREAM", stream.c_str(), 1);
  EXPECT_TRUE(standard_error_is_journal());
  start_logging("godwit-test", LogLevel::kDebug);
  spdlog::error("broken");
  spdlog::debug("detail");
  ::setenv("JOURNAL_STREAM", "0:0", 1);
  EXPECT_FALSE(standard_error_is_journal());
  ::unsetenv("JOURNAL_STREAM");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "<3>broken\n<7>detail\n");
}

TEST(Log, OutsideTextStaysOneLine) {
  EXPECT_EQ(printable("a\nb\x1b[0m\x7f"), "a\\x0ab\\x1b[0m\\x7f");
  EXPECT_EQ(printable("abcdef", 3), "abc...");
}

}  // namespace
}  // namespace godwit
