#include "base/atomic_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <fstream>

#include "tests/unit/base/temporary_directory.h"

namespace godwit {
namespace {

using Step = FileError::Step;

std::size_t entries(const std::filesystem::path& directory) {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator(directory), std::filesystem::directory_iterator()));
}

TEST(AtomicFile, WritesReplacesAndReads) {
  const test::TemporaryDirectory directory;
  ASSERT_TRUE(write_file_atomically(directory / "a", "first, longer"));
  ASSERT_TRUE(write_file_atomically(directory / "a", "second", 0640));
  EXPECT_EQ(read_file(directory / "a").value(), "second");
  EXPECT_EQ(entries(directory.path()), 1U);
  struct stat status {};
  ASSERT_EQ(::stat((directory / "a").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0640U);
}

TEST(AtomicFile, WritesPiecesInOrder) {
  const test::TemporaryDirectory directory;
  const std::string head = "head ", body(100'000, 'b');
  const std::array pieces{std::as_bytes(std::span(head)), std::as_bytes(std::span(body))};
  ASSERT_TRUE(write_file_atomically(directory / "a", pieces));
  EXPECT_EQ(read_file(directory / "a").value(), head + body);
}

TEST(AtomicFile, FailureLeavesTargetAndNoTemporary) {
  const test::TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "target");
  std::ofstream(directory / "target" / "inside") << "x";
  const auto result = write_file_atomically(directory / "target", "content");
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().step, Step::kRename);
  EXPECT_NE(result.error().text().find("target"), std::string::npos);
  EXPECT_TRUE(std::filesystem::is_directory(directory / "target"));
  EXPECT_EQ(entries(directory.path()), 1U);
}

TEST(AtomicFile, MissingDirectoryIsAnOpenError) {
  const test::TemporaryDirectory directory;
  const auto result = write_file_atomically(directory / "no" / "a", "content");
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().step, Step::kOpen);
  EXPECT_EQ(result.error().error_number, ENOENT);
}

TEST(AtomicFile, ReadRefusesMoreThanAllowed) {
  const test::TemporaryDirectory directory;
  ASSERT_TRUE(write_file_atomically(directory / "a", "12345678"));
  EXPECT_EQ(read_file(directory / "a", 8).value(), "12345678");
  const auto result = read_file(directory / "a", 7);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().step, Step::kTooLarge);
}

TEST(AtomicFile, ReadsProc) { EXPECT_FALSE(read_file("/proc/self/status").value().empty()); }

TEST(AtomicFile, RemoveIsIdempotent) {
  const test::TemporaryDirectory directory;
  ASSERT_TRUE(write_file_atomically(directory / "a", "x"));
  EXPECT_TRUE(remove_file_durably(directory / "a"));
  EXPECT_FALSE(std::filesystem::exists(directory / "a"));
  EXPECT_TRUE(remove_file_durably(directory / "a"));
}

TEST(AtomicFile, RemovesOnlyTemporaries) {
  const test::TemporaryDirectory directory;
  for (const char* name : {"a.tmp.12.0", "table.tmp.99.3", "keep.tmp", "keep.tmp.x.1", "keep", "keep.tmp.1",
                           "keep.tmp.1.2.3", "keep.tmp.1.", ".tmp.1.2"}) {
    std::ofstream(directory / name) << "x";
  }
  EXPECT_EQ(remove_temporaries(directory.path()), 2U);
  EXPECT_EQ(entries(directory.path()), 7U);
  EXPECT_EQ(remove_temporaries(directory / "absent"), 0U);
}

}  // namespace
}  // namespace godwit
