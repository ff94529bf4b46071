#include "qemu-bridge/attach/ram_discovery.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "qemu-bridge/attach/inject.h"
#include "tests/unit/memory/target_process.h"

namespace godwit::bridge::test {
namespace {

constexpr std::uint64_t kMiB = 1U << 20;

/// A name in /dev/shm that goes with the test.
class ShmFile {
 public:
  explicit ShmFile(const std::string& name)
      : path_("/dev/shm/godwit-memory-test-" + std::to_string(getpid()) + "-" + name) {}
  ~ShmFile() { unlink(path_.c_str()); }
  ShmFile(const ShmFile&) = delete;
  ShmFile& operator=(const ShmFile&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct Mapping {
  std::string path;  // "" for a memfd
  std::uint64_t bytes;
  int flags = MAP_SHARED;
};

TargetProcess process_with(const std::vector<Mapping>& mappings) {
  return TargetProcess::fork_with([&](const auto& ready) {
    for (const Mapping& mapping : mappings) {
      const int file = mapping.path.empty() ? memfd_create("memory-backend-memfd", MFD_CLOEXEC)
                                            : open(mapping.path.c_str(), O_RDWR | O_CREAT, 0600);
      if (ftruncate(file, static_cast<off_t>(mapping.bytes)) != 0 ||
          mmap(nullptr, mapping.bytes, PROT_READ | PROT_WRITE, mapping.flags, file, 0) == MAP_FAILED) {
        return 1;
      }
    }
    ready();
    return pause();
  });
}

TEST(ParseMaps, JoinsWhatContinues) {
  const auto mappings = parse_maps(
      "7f0000000000-7f0000100000 rw-s 00000000 00:1a 17                         /dev/shm/ram\n"
      "7f0000100000-7f0000200000 rw-s 00100000 00:1a 17                         /dev/shm/ram\n"
      "7f0000200000-7f0000300000 rw-s 00000000 00:1a 18                         /dev/shm/a b (deleted)\n"
      "7f0000300000-7f0000400000 rw-p 00000000 00:00 0 \n"
      "7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0                          [vdso]\n");
  ASSERT_TRUE(mappings);
  ASSERT_EQ(mappings->size(), 2U);
  EXPECT_EQ((*mappings)[0].bytes, 2 * kMiB);
  EXPECT_EQ((*mappings)[0].path, "/dev/shm/ram");
  EXPECT_TRUE((*mappings)[0].shared);
  EXPECT_EQ((*mappings)[1].path, "/dev/shm/a b (deleted)");
}

TEST(ParseMaps, RefusesOtherForms) {
  EXPECT_FALSE(parse_maps("hello\n"));
  EXPECT_FALSE(parse_maps("7f0000100000-7f0000000000 rw-s 00000000 00:1a 17 /x\n"));
  EXPECT_FALSE(parse_maps("7f0000000000-7f0000100000 rw-s 0000\n"));
  EXPECT_TRUE(parse_maps("")->empty());
}

TEST(DiscoverRam, FileAndMemfd) {
  const ShmFile file("file");
  const auto target = process_with({{file.path(), 2 * kMiB}, {"", 3 * kMiB}});
  const std::vector<MemoryBackend> backends{
      {.id = "ram1", .bytes = 3 * kMiB, .share = true, .type = "memory-backend-memfd", .mem_path = ""},
      {.id = "ram0", .bytes = 2 * kMiB, .share = true, .type = "memory-backend-file", .mem_path = file.path()}};
  const auto regions = discover_ram(target.pid(), backends);
  ASSERT_TRUE(regions) << regions.error().text;
  ASSERT_EQ(regions->size(), 2U);
  EXPECT_EQ((*regions)[0].name, "ram1");
  EXPECT_EQ((*regions)[0].path, "") << "a memfd has no name";
  EXPECT_EQ((*regions)[1].path, file.path());
  EXPECT_EQ((*regions)[1].page_bytes, 4096U);
  struct stat named {};
  struct stat opened {};
  ASSERT_EQ(stat(file.path().c_str(), &named), 0);
  ASSERT_EQ(fstat((*regions)[1].file.get(), &opened), 0);
  EXPECT_EQ(named.st_ino, opened.st_ino);
}

TEST(DiscoverRam, PrivateRamIsRefusedWithTheOption) {
  const auto refused = discover_ram(
      getpid(), std::vector<MemoryBackend>{
                    {.id = "ram0", .bytes = 2 * kMiB, .share = false, .type = "", .mem_path = "/dev/shm/x"}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().failure, DiscoveryFailure::kNotShared);
  EXPECT_NE(refused.error().text.find("-object memory-backend-file,id=ram0,size=2097152,mem-path=/dev/shm/x,share=on"),
            std::string::npos)
      << refused.error().text;
}

TEST(DiscoverRam, SayingSharedWhileMappedPrivateIsNotBelieved) {
  const ShmFile file("private");
  const auto target = process_with({{file.path(), 2 * kMiB, MAP_PRIVATE}});
  const auto refused = discover_ram(
      target.pid(), std::vector<MemoryBackend>{
                        {.id = "ram0", .bytes = 2 * kMiB, .share = true, .type = "", .mem_path = file.path()}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().failure, DiscoveryFailure::kNotFound);
}

TEST(DiscoverRam, TwoMemfdsOfOneSizeCannotBeTold) {
  const auto target = process_with({{"", 2 * kMiB}, {"", 2 * kMiB}});
  const auto refused = discover_ram(
      target.pid(),
      std::vector<MemoryBackend>{{.id = "ram0", .bytes = 2 * kMiB, .share = true, .type = "", .mem_path = ""}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().failure, DiscoveryFailure::kAmbiguous);
}

TEST(DiscoverRam, TwoBackendsOnOneFileAreRefused) {
  const ShmFile file("one");
  const auto target = process_with({{file.path(), 2 * kMiB}});
  const MemoryBackend backend{.id = "ram0", .bytes = 2 * kMiB, .share = true, .type = "", .mem_path = file.path()};
  MemoryBackend second = backend;
  second.id = "ram1";
  const auto refused = discover_ram(target.pid(), std::vector<MemoryBackend>{backend, second});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().failure, DiscoveryFailure::kAmbiguous);
}

TEST(DiscoverRam, FileLargerThanTheBackendIsRefused) {
  const ShmFile file("large");
  const auto target = process_with({{file.path(), 2 * kMiB}});
  ASSERT_EQ(truncate(file.path().c_str(), 4 << 20), 0);
  const auto refused = discover_ram(
      target.pid(), std::vector<MemoryBackend>{
                        {.id = "ram0", .bytes = 2 * kMiB, .share = true, .type = "", .mem_path = file.path()}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().failure, DiscoveryFailure::kWrongSize);
}

TEST(DiscoverRam, ProcessThatIsGone) {
  auto target = process_with({});
  const pid_t pid = target.pid();
  { const TargetProcess ends = std::move(target); }
  const auto refused = discover_ram(
      pid, std::vector<MemoryBackend>{{.id = "ram0", .bytes = kMiB, .share = true, .type = "", .mem_path = ""}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().failure, DiscoveryFailure::kProcessGone);
}

/// Root and another user: the whole attachment to Debian's QEMU.
class AttachQemu : public testing::TestWithParam<uid_t> {};

INSTANTIATE_TEST_SUITE_P(Users, AttachQemu, testing::Values(0U, 65534U),
                         [](const auto& user) { return user.param == 0 ? "Root" : "Other"; });

TEST_P(AttachQemu, RamIsFoundAndAUserfaultfdInjected) {
  if (GetParam() != 0 && geteuid() != 0) {
    GTEST_SKIP() << "needs root to become another user";
  }
  if (access("/usr/bin/qemu-system-x86_64", X_OK) != 0) {
    GTEST_SKIP() << "no qemu-system-x86_64";
  }
  const ShmFile file("qemu");
  const std::string size = std::to_string(16 * kMiB);
  auto qemu = TargetProcess::execute({"/usr/bin/qemu-system-x86_64",
                                      "-nodefaults",
                                      "-display",
                                      "none",
                                      "-accel",
                                      "tcg",
                                      "-machine",
                                      "q35",
                                      "-m",
                                      "32M",
                                      "-smp",
                                      "2",
                                      "-object",
                                      "memory-backend-file,id=ram0,size=" + size + ",share=on,mem-path=" + file.path(),
                                      "-object",
                                      "memory-backend-memfd,id=ram1,share=on,size=" + size,
                                      "-numa",
                                      "node,memdev=ram0",
                                      "-numa",
                                      "node,memdev=ram1"},
                                     GetParam());
  const std::vector<MemoryBackend> backends{
      {.id = "ram0", .bytes = 16 * kMiB, .share = true, .type = "", .mem_path = file.path()}};
  auto regions = discover_ram(qemu.pid(), backends);
  for (int tries = 0; tries < 500 && !regions && qemu.runs(); ++tries) {
    usleep(20'000);  // tidy-allow(sleep): QEMU is starting
    regions = discover_ram(qemu.pid(), backends);
  }
  ASSERT_TRUE(regions) << regions.error().text;
  EXPECT_EQ((*regions)[0].path, file.path());
  for (int i = 0; i < 20; ++i) {
    const auto result = inject(qemu.pid(), {SYS_getpid, {}});
    ASSERT_TRUE(result) << result.error().text;
    ASSERT_EQ(*result, qemu.pid());
  }
  const auto injected = inject_userfaultfd(qemu.pid(), UserfaultUse::kTracking);
  ASSERT_TRUE(injected) << injected.error().text;
  EXPECT_EQ(find_userfaultfds(qemu.pid()).value(), std::vector<int>{injected->number_in_qemu});
  EXPECT_TRUE(qemu.runs());
}

}  // namespace
}  // namespace godwit::bridge::test
