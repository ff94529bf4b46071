#include "dataplane/memory/retained_image.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "dataplane/memory/image_record.h"

namespace godwit::memory::test {
namespace {

constexpr std::uint64_t kMiB = 1U << 20;

Id id_of(std::uint8_t value) {
  Id id{};
  id.fill(static_cast<std::byte>(value));
  return id;
}

class RetainedImageTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = "/dev/shm/godwit-memory-test-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  ImageStore open_store(std::uint64_t budget = 0, Id boot = id_of(99)) {
    auto store = ImageStore::open(directory_, budget, boot);
    EXPECT_TRUE(store) << store.error().text;
    return std::move(*store);
  }

  std::string ram_path(std::uint8_t vm, int region) const {
    return directory_ + "/vm" + std::to_string(vm) + ".ram" + std::to_string(region);
  }

  /// An image of two regions, 1 MiB each, with all of its RAM allocated.
  RetainedImage make_image(std::uint8_t vm, std::uint32_t epoch = 7) {
    RetainedImage image{
        .vm_uuid = id_of(vm), .image_id = id_of(50), .epoch = epoch, .regions = {}, .table = {}, .hashes = {}};
    for (int region = 0; region < 2; ++region) {
      std::ofstream(ram_path(vm, region)) << std::string(kMiB, 'x');
      const UniqueFd file(open(ram_path(vm, region).c_str(), O_RDWR));
      image.regions.push_back(
          describe_ram_file("ram" + std::to_string(region), kMiB, 4096, ram_path(vm, region), file.get()).value());
    }
    image.table = pages::GenerationTable(512, 1);
    std::mt19937 random(vm);
    for (pages::PageNumber page = 0; page < 512; ++page) {
      image.table.set(page, random() % 3 == 0 ? pages::kUnknownGeneration : random() % 8);
      image.hashes.push_back(random());
    }
    return image;
  }

  static ImageWanted wanted_of(const RetainedImage& image) {
    ImageWanted wanted{image.vm_uuid, image.image_id, {}};
    for (const ImageRegion& region : image.regions) {
      wanted.regions.push_back({region.name, region.bytes, region.page_bytes});
    }
    return wanted;
  }

  std::string record_path(std::uint8_t vm, const char* suffix = ".image") const {
    return directory_ + "/" + to_string(id_of(vm)) + suffix;
  }

  static std::vector<char> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static void write_file(const std::string& path, const std::vector<char>& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  void set_last_used(std::uint8_t vm, time_t seconds) {
    const timespec times[2] = {{seconds, 0}, {seconds, 0}};
    ASSERT_EQ(utimensat(AT_FDCWD, record_path(vm).c_str(), times, 0), 0);
  }

  static Refusal reason(const std::expected<RetainedImage, ImageRefused>& result) {
    EXPECT_FALSE(result);
    EXPECT_TRUE(result || result.error().text.find('\n') == std::string::npos) << "one line";
    return result ? Refusal::kSystem : result.error().reason;
  }

  std::string directory_;
};

TEST(ImageIdText, RoundTripAndRefusal) {
  const std::string text = "01234567-89ab-cdef-0011-223344556677";
  EXPECT_EQ(to_string(parse_id(text).value()), text);
  EXPECT_FALSE(parse_id(""));
  EXPECT_FALSE(parse_id("01234567-89ab-cdef-0011-22334455667g"));
  EXPECT_FALSE(parse_id("0123456789abcdef00112233445566770000"));
  EXPECT_TRUE(read_boot_id());
}

TEST_F(RetainedImageTest, LoadsWhatWasSaved) {
  const RetainedImage image = make_image(1);
  ASSERT_TRUE(open_store().save(image));
  const auto loaded = open_store().load(wanted_of(image));
  ASSERT_TRUE(loaded) << loaded.error().text;
  EXPECT_EQ(loaded->epoch, 7U);
  EXPECT_EQ(loaded->regions, image.regions);
  EXPECT_TRUE(loaded->table == image.table);
  EXPECT_EQ(loaded->hashes, image.hashes);
}

TEST_F(RetainedImageTest, EveryTruncationIsRefused) {
  const RetainedImage image = make_image(1);
  const ImageStore store = open_store();
  ASSERT_TRUE(open_store().save(image));
  const std::vector<char> bytes = read_file(record_path(1));
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    write_file(record_path(1), {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length)});
    ASSERT_EQ(reason(store.load(wanted_of(image))), Refusal::kTruncated) << length << " of " << bytes.size();
  }
  std::vector<char> longer = bytes;
  longer.push_back(0);
  write_file(record_path(1), longer);
  EXPECT_EQ(reason(store.load(wanted_of(image))), Refusal::kMalformed);
}

TEST_F(RetainedImageTest, EveryFlippedBitIsRefused) {
  const RetainedImage image = make_image(1);
  const ImageStore store = open_store();
  ASSERT_TRUE(open_store().save(image));
  const std::vector<char> bytes = read_file(record_path(1));
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    std::vector<char> flipped = bytes;
    flipped[at] = static_cast<char>(flipped[at] ^ 1 << at % 8);
    write_file(record_path(1), flipped);
    ASSERT_FALSE(store.load(wanted_of(image))) << "byte " << at << " of " << bytes.size();
  }
  write_file(record_path(1), bytes);
  EXPECT_TRUE(store.load(wanted_of(image)));
}

TEST_F(RetainedImageTest, WhatIsNotTheImageWantedIsRefused) {
  const RetainedImage image = make_image(1);
  ImageStore store = open_store();
  EXPECT_EQ(reason(store.load(wanted_of(image))), Refusal::kMissing);
  ASSERT_TRUE(store.save(image));
  ImageWanted wanted = wanted_of(image);
  wanted.image_id = id_of(51);
  EXPECT_EQ(reason(store.load(wanted)), Refusal::kOtherImage);
  wanted = wanted_of(image);
  wanted.regions[1].bytes += 4096;
  EXPECT_EQ(reason(store.load(wanted)), Refusal::kOtherRegions);
  wanted = wanted_of(image);
  std::swap(wanted.regions[0], wanted.regions[1]);
  EXPECT_EQ(reason(store.load(wanted)), Refusal::kOtherRegions);
  wanted.regions.pop_back();
  EXPECT_EQ(reason(store.load(wanted)), Refusal::kOtherRegions);
  EXPECT_EQ(reason(open_store(0, id_of(98)).load(wanted_of(image))), Refusal::kOtherBoot);
  std::filesystem::rename(record_path(1), record_path(2));
  wanted = wanted_of(image);
  wanted.vm_uuid = id_of(2);
  EXPECT_EQ(reason(store.load(wanted)), Refusal::kOtherVm);
}

TEST_F(RetainedImageTest, RamFileGoneReplacedOrResized) {
  const RetainedImage image = make_image(1);
  ImageStore store = open_store();
  ASSERT_TRUE(store.save(image));
  ASSERT_EQ(truncate(ram_path(1, 1).c_str(), kMiB + 4096), 0);
  EXPECT_EQ(reason(store.load(wanted_of(image))), Refusal::kRamFileResized);
  const UniqueFd keeps_the_inode_taken(open(ram_path(1, 1).c_str(), O_RDONLY));
  std::filesystem::remove(ram_path(1, 1));
  EXPECT_EQ(reason(store.load(wanted_of(image))), Refusal::kRamFileGone);
  std::ofstream(ram_path(1, 1)) << std::string(kMiB, 'x');
  EXPECT_EQ(reason(store.load(wanted_of(image))), Refusal::kRamFileReplaced);
  EXPECT_EQ(store.unusable().size(), 1U);
}

TEST_F(RetainedImageTest, MemfdCannotBeRetained) {
  RetainedImage image = make_image(1);
  image.regions[0].path = "";
  const auto saved = open_store().save(image);
  ASSERT_FALSE(saved);
  EXPECT_EQ(saved.error().code, ErrorCode::kBadArgument);
}

TEST_F(RetainedImageTest, RecordOfAnotherVersionIsRefusedAsSuch) {
  const RetainedImage image = make_image(1);
  ImageStore store = open_store();
  ASSERT_TRUE(store.save(image));
  std::vector<char> bytes = read_file(record_path(1));
  ++bytes[8];
  write_file(record_path(1), bytes);
  EXPECT_EQ(reason(store.load(wanted_of(image))), Refusal::kVersion);
  bytes[0] = 'x';
  write_file(record_path(1), bytes);
  EXPECT_EQ(reason(store.load(wanted_of(image))), Refusal::kNotAnImage);
}

TEST_F(RetainedImageTest, ImageInUseIsNoImageUntilSavedAgain) {
  const RetainedImage image = make_image(1);
  {
    ImageStore store = open_store();
    ASSERT_TRUE(store.save(image));
    ASSERT_TRUE(store.acquire(wanted_of(image)));
    // The daemon dies here, somewhere in the middle of overwriting RAM.
  }
  ImageStore store = open_store();
  EXPECT_EQ(reason(store.load(wanted_of(image))), Refusal::kInUse);
  EXPECT_EQ(reason(store.acquire(wanted_of(image))), Refusal::kInUse);
  ASSERT_EQ(store.list()->size(), 1U);
  EXPECT_TRUE(store.list()->front().in_use);
  EXPECT_FALSE(store.drop(id_of(1))) << "in use";
  ASSERT_TRUE(store.save(make_image(1, 9)));
  EXPECT_EQ(store.load(wanted_of(image))->epoch, 9U);
  EXPECT_FALSE(std::filesystem::exists(record_path(1, ".image.in-use")));
}

TEST_F(RetainedImageTest, ReleasedUntouchedItIsAnImageAgain) {
  const RetainedImage image = make_image(1);
  ImageStore store = open_store();
  ASSERT_TRUE(store.save(image));
  ASSERT_TRUE(store.acquire(wanted_of(image)));
  ASSERT_TRUE(store.release_untouched(image.vm_uuid));
  EXPECT_TRUE(store.load(wanted_of(image)));
  EXPECT_FALSE(store.release_untouched(image.vm_uuid)) << "was not in use";
}

TEST_F(RetainedImageTest, CrashWindowsOfSaving) {
  const RetainedImage image = make_image(1);
  ImageStore store = open_store();
  ASSERT_TRUE(store.save(image));
  ASSERT_TRUE(store.acquire(wanted_of(image)));
  const std::vector<char> bytes = read_file(record_path(1, ".image.in-use"));
  // Died while writing the new record: still in use, the half record goes.
  write_file(record_path(1, ".image.new"), {bytes.begin(), bytes.begin() + 100});
  EXPECT_EQ(reason(open_store().load(wanted_of(image))), Refusal::kInUse);
  EXPECT_FALSE(std::filesystem::exists(record_path(1, ".image.new")));
  // Died between renaming the new record and removing the mark: the new record counts.
  write_file(record_path(1), bytes);
  EXPECT_TRUE(open_store().load(wanted_of(image)));
  EXPECT_FALSE(std::filesystem::exists(record_path(1, ".image.in-use")));
}

TEST_F(RetainedImageTest, KilledWhileSavingThereIsAlwaysOneWholeImage) {
  const RetainedImage image = make_image(1, 1);
  ASSERT_TRUE(open_store().save(image));
  for (int round = 0; round < 30; ++round) {
    const pid_t saver = fork();
    if (saver == 0) {
      ImageStore store = open_store();
      RetainedImage next = image;
      for (std::uint32_t epoch = 2;; ++epoch) {
        next.epoch = epoch;
        if (!store.save(next)) {
          _exit(1);
        }
      }
    }
    usleep(static_cast<useconds_t>(500 + round * 137));  // tidy-allow(sleep): when the process is killed
    kill(saver, SIGKILL);
    waitpid(saver, nullptr, 0);
    const auto loaded = open_store().load(wanted_of(image));
    ASSERT_TRUE(loaded) << loaded.error().text;
    ASSERT_TRUE(loaded->table == image.table);
  }
}

TEST_F(RetainedImageTest, DropRemovesRecordAndRamFiles) {
  const RetainedImage image = make_image(1);
  ImageStore store = open_store();
  ASSERT_TRUE(store.save(image));
  ASSERT_TRUE(store.drop(id_of(1)));
  EXPECT_TRUE(std::filesystem::is_empty(directory_));
  const auto again = store.drop(id_of(1));
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, ErrorCode::kBadArgument);
}

TEST_F(RetainedImageTest, DropLeavesARamFileThatIsAnotherOneNow) {
  const RetainedImage image = make_image(1);
  ImageStore store = open_store();
  ASSERT_TRUE(store.save(image));
  const UniqueFd keeps_the_inode_taken(open(ram_path(1, 0).c_str(), O_RDONLY));
  std::filesystem::remove(ram_path(1, 0));
  std::ofstream(ram_path(1, 0)) << "of a running guest";
  ASSERT_TRUE(store.drop(id_of(1)));
  EXPECT_TRUE(std::filesystem::exists(ram_path(1, 0)));
  EXPECT_FALSE(std::filesystem::exists(ram_path(1, 1)));
}

TEST_F(RetainedImageTest, DropTakesAnInterruptedImageOnlyWhenItsRamIsGone) {
  const RetainedImage image = make_image(1);
  ImageStore store = open_store();
  ASSERT_TRUE(store.save(image));
  ASSERT_TRUE(store.acquire(wanted_of(image)));
  std::filesystem::remove(ram_path(1, 0));
  EXPECT_FALSE(store.drop(id_of(1))) << "one region's RAM is still there";
  EXPECT_TRUE(std::filesystem::exists(ram_path(1, 1)));
  std::filesystem::remove(ram_path(1, 1));
  EXPECT_TRUE(store.drop(id_of(1)));
  EXPECT_TRUE(store.list()->empty());
}

TEST_F(RetainedImageTest, ForgettingLeavesTheRamFiles) {
  const RetainedImage image = make_image(1);
  ImageStore store = open_store();
  ASSERT_TRUE(store.save(image));
  ASSERT_TRUE(store.save(make_image(2)));
  ASSERT_TRUE(store.forget_files({image.regions[1]}));
  EXPECT_EQ(reason(store.load(wanted_of(image))), Refusal::kMissing);
  ASSERT_EQ(store.list()->size(), 1U);
  ASSERT_TRUE(store.forget(id_of(2)));
  ASSERT_TRUE(store.forget(id_of(2)));
  EXPECT_TRUE(store.list()->empty());
  EXPECT_TRUE(std::filesystem::exists(ram_path(1, 0)));
  EXPECT_TRUE(std::filesystem::exists(ram_path(2, 1)));
}

TEST_F(RetainedImageTest, ListTellsSizesAndOrder) {
  ImageStore store = open_store();
  for (const std::uint8_t vm : std::initializer_list<std::uint8_t>{1, 2, 3}) {
    ASSERT_TRUE(store.save(make_image(vm)));
  }
  set_last_used(2, 1000);
  set_last_used(3, 2000);
  set_last_used(1, 3000);
  const auto images = store.list().value();
  ASSERT_EQ(images.size(), 3U);
  EXPECT_EQ(images[0].vm_uuid, id_of(2));
  EXPECT_EQ(images[1].vm_uuid, id_of(3));
  EXPECT_EQ(images[2].vm_uuid, id_of(1));
  EXPECT_EQ(images[0].bytes_total, 2 * kMiB);
  EXPECT_GE(images[0].bytes_resident, 2 * kMiB);
  EXPECT_LT(images[0].bytes_resident, 2 * kMiB + 64 * 1024);
  const RetainedImage image = make_image(2);
  EXPECT_EQ(images[0].pages_known, 512 - image.table.count(pages::kUnknownGeneration));
}

TEST_F(RetainedImageTest, BudgetTakesLeastRecentlyUsedFirst) {
  ImageStore store = open_store(9 * kMiB);
  for (const std::uint8_t vm : std::initializer_list<std::uint8_t>{1, 2, 3, 4}) {
    ASSERT_TRUE(store.save(make_image(vm)));
  }
  set_last_used(2, 1000);
  set_last_used(3, 2000);
  set_last_used(1, 3000);
  set_last_used(4, 4000);
  EXPECT_TRUE(store.make_room(0, std::nullopt)->dropped.empty()) << "fits";
  ASSERT_TRUE(store.acquire(wanted_of(make_image(2)))) << "the oldest, but in use";
  const auto made = store.make_room(6 * kMiB, id_of(3));
  ASSERT_TRUE(made);
  EXPECT_EQ(made->dropped, (std::vector<Id>{id_of(1), id_of(4)})) << "3 was to be kept";
  EXPECT_GE(made->freed_bytes, 4 * kMiB);
  EXPECT_FALSE(std::filesystem::exists(ram_path(1, 0)));
  EXPECT_TRUE(std::filesystem::exists(ram_path(2, 0)));
  const auto more = store.make_room(UINT64_MAX, std::nullopt);
  ASSERT_TRUE(more);
  EXPECT_EQ(more->dropped, std::vector<Id>{id_of(3)});
  EXPECT_EQ(more->used_bytes, 0) << "what is in use is its guest's";
  EXPECT_TRUE(std::filesystem::exists(ram_path(2, 0))) << "and stays";
}

TEST_F(RetainedImageTest, WhatServesAGuestElsewhereIsNobodyElses) {
  ImageStore store = open_store(3 * kMiB);
  RetainedImage image = make_image(1);
  image.serving = id_of(9);
  ASSERT_TRUE(store.save(image));
  EXPECT_EQ(reason(store.load(wanted_of(image))), Refusal::kInUse);
  EXPECT_EQ(reason(store.acquire(wanted_of(image))), Refusal::kInUse);
  EXPECT_FALSE(store.drop(image.vm_uuid));
  EXPECT_FALSE(store.forget(image.vm_uuid));
  EXPECT_FALSE(store.forget_files(image.regions));
  EXPECT_TRUE(store.make_room(UINT64_MAX, std::nullopt)->dropped.empty());
  ASSERT_EQ(store.list()->size(), 1U);
  EXPECT_TRUE(store.list()->front().in_use);
  EXPECT_EQ(store.list()->front().serving, id_of(9));
  EXPECT_TRUE(std::filesystem::exists(ram_path(1, 0)));

  EXPECT_EQ(reason(store.load_serving(id_of(8))), Refusal::kMissing);
  const auto found = open_store().load_serving(id_of(9));
  ASSERT_TRUE(found) << found.error().text;
  EXPECT_EQ(found->vm_uuid, image.vm_uuid);
  EXPECT_TRUE(found->table == image.table);

  image.serving = {};
  ASSERT_TRUE(store.save(image));
  EXPECT_TRUE(store.load(wanted_of(image)));
  EXPECT_EQ(reason(store.load_serving(id_of(9))), Refusal::kMissing);
  EXPECT_TRUE(store.drop(image.vm_uuid));
}

TEST_F(RetainedImageTest, WhatCanServeNobodyAnyMoreIsNoObstacle) {
  RetainedImage image = make_image(1);
  image.serving = id_of(9);
  ASSERT_TRUE(open_store().save(image));
  EXPECT_FALSE(open_store().forget_files(image.regions));
  EXPECT_TRUE(open_store(0, id_of(98)).forget_files(image.regions)) << "the host was restarted since";
  ASSERT_TRUE(open_store().save(image));
  EXPECT_TRUE(open_store(0, id_of(98)).forget(image.vm_uuid)) << "the host was restarted since";

  ASSERT_TRUE(open_store().save(image));
  std::filesystem::remove(ram_path(1, 0));
  EXPECT_FALSE(open_store().forget(image.vm_uuid)) << "some of it is still there";
  std::filesystem::remove(ram_path(1, 1));
  EXPECT_TRUE(open_store().forget(image.vm_uuid)) << "its memory is gone";
}

TEST_F(RetainedImageTest, DirectoryThatIsNone) {
  EXPECT_FALSE(ImageStore::open(directory_ + "/none", 0, id_of(99)));
  std::ofstream(directory_ + "/file") << "x";
  EXPECT_FALSE(ImageStore::open(directory_ + "/file", 0, id_of(99)));
}

TEST_F(RetainedImageTest, RandomBytesNeverDecode) {
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::byte> bytes(32 + random() % 300);
    for (std::byte& byte : bytes) {
      byte = static_cast<std::byte>(random());
    }
    EXPECT_FALSE(decode_lengths(bytes, bytes.size()));
    EXPECT_FALSE(decode_head(bytes));
  }
}

}  // namespace
}  // namespace godwit::memory::test
