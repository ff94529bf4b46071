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

TEST(Log, OutsideTextBecomesUtf8) {
  const char* const good[] = {"caf\xc3\xa9", "\xe2\x82\xac", "\xed\x9f\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"};
  for (const char* const text : good) {
    EXPECT_EQ(printable(text), text);
  }
  EXPECT_EQ(printable("\xc3"), "\\xc3") << "cut off";
  EXPECT_EQ(printable("\xa9z"), "\\xa9z") << "a continuation of nothing";
  EXPECT_EQ(printable("\xc0\xaf"), "\\xc0\\xaf") << "an overlong '/'";
  EXPECT_EQ(printable("\xe0\x80\xaf"), "\\xe0\\x80\\xaf") << "overlong";
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80") << "a surrogate";
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80") << "beyond Unicode";
  EXPECT_EQ(printable("\xff"), "\\xff");
  EXPECT_EQ(printable("ab\xc3\xa9", 3), "ab...") << "cut between characters, not within one";
  EXPECT_EQ(printable("ab\xc3\xa9", 4), "ab\xc3\xa9");
}

}  // namespace
}  // namespace godwit
