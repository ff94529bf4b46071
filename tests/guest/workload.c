// The guest's self-checking workload: it owns MB MiB of random pages, writes RATE of them a second, and verifies them
// all the time.
//
// usage: workload MB RATE [bench | hot | hot-last | disk | devices | freed | beat | told]
// Each page holds its number, a version, random words and a checksum over all of it; a ledger elsewhere in memory holds
// each page's version. A page lost, stale, torn or misplaced by a migration shows as a wrong checksum, number or
// version. One line on the console about four times a second:
//   GODWIT ms=<uptime> writes=<pages written so far> checked=<pages verified so far> sweeps=<n> bad=<wrong pages so
//   far>
// The first line after filling is "GODWIT FILLED pages=<n>". bench: instead writes one word of every page, over and
// over, and prints the rate of each sweep: "GODWIT BENCH sweep=<n> pages_per_s=<n>". hot, hot-last: the same of
// the first or last quarter. disk: besides, kReaders processes read the first disk into memory past the page cache,
// slot by slot, and what a slot holds must be what was read into it last, until it is read into again. Word i of the
// disk is (i + 1) * kMix. With each status line comes "GODWIT DISK reads=<n>"; wrong slots count as bad pages. devices:
// as disk, and one process has its packets echoed by the gateway 10.0.2.2 through eth0, each from another page and back
// into another, and one reads the virtual random number generator. "GODWIT DEVICES echoes=<n> random=<n>" comes with
// each status line; wrong bytes in an echo count as bad pages, a lost echo does not. freed: 48 MiB were written and
// freed before the beginning: a balloon takes those first, and they are not empty. beat: besides, a process on the
// first vCPU, which touches none of those pages, says "GODWIT BEAT n=<n>" ten times a second; the pages are the second
// vCPU's. told: a line on the second serial port is the rate from then on, and "GODWIT RATE <n>" the answer.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { kWords = 512, kVersion = 0, kNumber = 1, kCheck = 511, kBadShown = 20 };
static const uint64_t kMix = 0x9e3779b97f4a7c15ull;

enum { kReaders = 4, kSlots = 32, kChunkWords = 8192 };
enum { kDevicePages = 512, kEchoBytes = 1024 };
struct Disk {
  atomic_ulong reads, bad, echoes, random;
  uint64_t slots[kReaders][kSlots][kChunkWords] __attribute__((aligned(4096)));
};

static uint64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint64_t checksum_without_version(const uint64_t* page) {
  uint64_t sum = 0;
  for (int i = 1; i < kCheck; i++) sum = (sum ^ page[i]) * kMix;
  return sum;
}

static void fill(uint64_t* ram, uint64_t pages) {
  uint64_t s = 88172645463325252ull;
  for (uint64_t p = 0; p < pages; p++) {
    uint64_t* page = ram + p * kWords;
    for (int i = 2; i < kCheck; i++) {
      s ^= s << 13, s ^= s >> 7, s ^= s << 17;
      page[i] = s;
    }
    page[kVersion] = 0;
    page[kNumber] = p;
    page[kCheck] = checksum_without_version(page);
  }
}

// The version's share of the checksum can be changed in place, so that a write costs two words and not a page.
static void write_page(uint64_t* page, uint32_t* version) {
  uint64_t next = *version + 1ull;
  page[kCheck] ^= (page[kVersion] * kMix) ^ (next * kMix);
  page[kVersion] = next;
  *version = (uint32_t)next;
}

static int page_is_right(const uint64_t* page, uint64_t number, uint32_t version) {
  return page[kVersion] == version && page[kNumber] == number &&
         page[kCheck] == (checksum_without_version(page) ^ (page[kVersion] * kMix));
}

static void bench(uint64_t* ram, uint64_t pages) {
  for (uint64_t sweep = 1;; sweep++) {
    uint64_t begin = now_us();
    for (uint64_t p = 0; p < pages; p++) ((volatile uint64_t*)ram)[p * kWords] = sweep;
    uint64_t took = now_us() - begin;
    printf("GODWIT BENCH sweep=%" PRIu64 " pages_per_s=%" PRIu64 "\n", sweep, pages * 1000000 / (took ? took : 1));
    fflush(stdout);
  }
}

static void write_and_free(void) {
  const size_t bytes = 48 << 20;
  char* memory = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) exit(1);
  memset(memory, 0x5a, bytes);
  munmap(memory, bytes);
}

static void nap_ms(long ms) {
  struct timespec nap = {0, ms * 1000000};
  nanosleep(&nap, 0);
}

static void check_slot(struct Disk* disk, int reader, int slot, uint64_t chunk) {
  const uint64_t* words = disk->slots[reader][slot];
  for (uint64_t i = 0; i < kChunkWords; i++)
    if (words[i] != (chunk * kChunkWords + i + 1) * kMix) {
      if (atomic_fetch_add(&disk->bad, 1) < kBadShown)
        printf("GODWIT BAD disk reader=%d slot=%d chunk=%" PRIu64 " word=%" PRIu64 "\n", reader, slot, chunk, i);
      fflush(stdout);
      return;
    }
}

// What was read stays for kSlots reads, and is checked when it has come and when it goes.
static void read_for_ever(struct Disk* disk, int reader) {
  int fd = -1;
  uint64_t bytes = 0, chunk_of[kSlots];
  while ((fd = open("/dev/vda", O_RDONLY | O_DIRECT)) < 0) nap_ms(10);
  if (ioctl(fd, BLKGETSIZE64, &bytes) != 0) exit(1);
  const uint64_t chunks = bytes / (kChunkWords * 8);
  for (uint64_t n = 0;; n++) {
    const int slot = (int)(n % kSlots);
    if (n >= kSlots) check_slot(disk, reader, slot, chunk_of[slot]);
    chunk_of[slot] = (n * kReaders + (uint64_t)reader) % chunks;
    if (pread(fd, disk->slots[reader][slot], kChunkWords * 8, (off_t)(chunk_of[slot] * kChunkWords * 8)) !=
        kChunkWords * 8) {
      atomic_fetch_add(&disk->bad, 1);
      printf("GODWIT BAD disk reader=%d: read error\n", reader);
      fflush(stdout);
    }
    check_slot(disk, reader, slot, chunk_of[slot]);
    atomic_fetch_add(&disk->reads, 1);
  }
}

static struct Disk* start_readers(void) {
  struct Disk* disk = mmap(0, sizeof *disk, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (disk == MAP_FAILED) exit(1);
  for (int reader = 0; reader < kReaders; reader++)
    if (fork() == 0) read_for_ever(disk, reader);
  return disk;
}

static int configure_eth0(void) {
  struct ifreq interface = {.ifr_name = "eth0"};
  struct sockaddr_in* address = (struct sockaddr_in*)&interface.ifr_addr;
  const int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
  address->sin_family = AF_INET;
  inet_pton(AF_INET, "10.0.2.15", &address->sin_addr);
  if (ioctl(fd, SIOCSIFADDR, &interface) != 0) exit(1);
  inet_pton(AF_INET, "255.255.255.0", &address->sin_addr);
  if (ioctl(fd, SIOCSIFNETMASK, &interface) != 0) exit(1);
  interface.ifr_flags = IFF_UP | IFF_RUNNING;
  if (ioctl(fd, SIOCSIFFLAGS, &interface) != 0) exit(1);
  const struct timeval patience = {0, 200000};
  if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) != 0) exit(1);
  return fd;
}

static uint16_t icmp_checksum(const void* packet, size_t bytes) {
  const uint16_t* halves = packet;
  uint32_t sum = 0;
  for (size_t i = 0; i < bytes / 2; i++) sum += halves[i];
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return (uint16_t)~sum;
}

struct Echo {
  struct icmphdr head;
  uint64_t words[kEchoBytes / 8];
};

static void echo_for_ever(struct Disk* disk) {
  static uint8_t sent[kDevicePages][4096] __attribute__((aligned(4096))), got[kDevicePages][4096];
  const int fd = configure_eth0();
  struct sockaddr_in gateway = {.sin_family = AF_INET};
  inet_pton(AF_INET, "10.0.2.2", &gateway.sin_addr);
  for (uint64_t n = 0;; n++) {
    struct Echo* out = (struct Echo*)sent[n % kDevicePages];
    uint8_t* in = got[n % kDevicePages];
    *out = (struct Echo){.head = {.type = ICMP_ECHO, .un.echo = {.id = 1, .sequence = htons((uint16_t)n)}}};
    for (int i = 0; i < kEchoBytes / 8; i++) out->words[i] = (n * kEchoBytes + (uint64_t)i + 1) * kMix;
    out->head.checksum = icmp_checksum(out, sizeof *out);
    if (sendto(fd, out, sizeof *out, 0, (struct sockaddr*)&gateway, sizeof gateway) < 0) {
      nap_ms(10);
      continue;
    }
    for (;;) {
      const ssize_t bytes = recv(fd, in, 4096, 0);
      if (bytes < 0) break;  // lost: another
      const struct Echo* back = (const struct Echo*)(in + ((struct iphdr*)in)->ihl * 4u);
      if (back->head.type != ICMP_ECHOREPLY || back->head.un.echo.sequence != htons((uint16_t)n)) continue;
      if (bytes != (ssize_t)(((struct iphdr*)in)->ihl * 4u + sizeof *out) ||
          memcmp(back->words, out->words, sizeof out->words) != 0) {
        atomic_fetch_add(&disk->bad, 1);
        printf("GODWIT BAD echo=%" PRIu64 " bytes=%zd\n", n, bytes);
        fflush(stdout);
      }
      atomic_fetch_add(&disk->echoes, 1);
      break;
    }
    nap_ms(2);
  }
}

static void draw_for_ever(struct Disk* disk) {
  static uint8_t drawn[kDevicePages][4096] __attribute__((aligned(4096)));
  static const uint8_t nothing[64];
  int fd;
  while ((fd = open("/dev/hwrng", O_RDONLY)) < 0) nap_ms(10);
  for (uint64_t n = 0;; n++) {
    uint8_t* page = drawn[n % kDevicePages];
    memset(page, 0, 4096);
    if (read(fd, page, 4096) >= 64) {
      if (memcmp(page, nothing, sizeof nothing) == 0) {
        atomic_fetch_add(&disk->bad, 1);
        printf("GODWIT BAD random=%" PRIu64 "\n", n);
        fflush(stdout);
      }
      atomic_fetch_add(&disk->random, 1);
    }
    nap_ms(5);
  }
}

static void start_devices(struct Disk* disk) {
  if (fork() == 0) echo_for_ever(disk);
  if (fork() == 0) draw_for_ever(disk);
}

static void run_on(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  if (sched_setaffinity(0, sizeof one, &one) != 0) exit(1);
}

static void start_beat(void) {
  int console_irq = open("/proc/irq/4/smp_affinity", O_WRONLY);
  if (console_irq < 0 || write(console_irq, "1", 1) != 1) exit(1);  // else nobody is heard while the second vCPU waits
  close(console_irq);
  if (fork() != 0) return run_on(1);
  run_on(0);
  for (unsigned long n = 1;; n++) {
    printf("GODWIT BEAT n=%lu\n", n);
    fflush(stdout);
    nap_ms(100);
  }
}

// Whether somebody has told another rate.
static int told(int port, uint64_t* rate) {
  char line[32];
  const ssize_t count = port < 0 ? 0 : read(port, line, sizeof line - 1);
  if (count <= 0) return 0;
  line[count] = 0;
  *rate = strtoull(line, 0, 10);
  printf("GODWIT RATE %" PRIu64 "\n", *rate);
  fflush(stdout);
  return 1;
}

int main(int argc, char** argv) {
  if (argc < 3)
    return fprintf(stderr, "usage: workload MB RATE [bench | hot | hot-last | disk | devices | freed | beat | told]\n"),
           2;
  uint64_t pages = strtoull(argv[1], 0, 10) * 256, rate = strtoull(argv[2], 0, 10);
  const char* mode = argc > 3 ? argv[3] : "";
  if (!strcmp(mode, "beat")) start_beat();  // before there are pages to share with it
  uint64_t* ram = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  uint32_t* versions = calloc(pages, sizeof *versions);
  if (ram == MAP_FAILED || !versions) return fprintf(stderr, "workload: no memory\n"), 1;
  memset(versions, 0, pages * sizeof *versions);
  fill(ram, pages);
  const int devices = !strcmp(mode, "devices");
  if (!strcmp(mode, "freed")) write_and_free();
  printf("GODWIT FILLED pages=%" PRIu64 "\n", pages);
  fflush(stdout);
  if (!strcmp(mode, "bench")) bench(ram, pages);
  if (!strcmp(mode, "hot")) bench(ram, pages / 4);
  if (!strcmp(mode, "hot-last")) bench(ram + pages / 4 * 3 * kWords, pages / 4);
  struct Disk* disk = devices || !strcmp(mode, "disk") ? start_readers() : 0;
  if (devices) start_devices(disk);
  const int port = !strcmp(mode, "told") ? open("/dev/ttyS1", O_RDONLY | O_NONBLOCK | O_NOCTTY) : -1;

  uint64_t begin = now_us(), before = 0, written = 0, checked = 0, sweeps = 0, bad = 0, at_write = 0, at_check = 0,
           said = 0;
  for (;;) {
    nap_ms(10);
    uint64_t now = now_us();
    if (told(port, &rate)) begin = now, before = written;
    uint64_t want = before + (now - begin) * rate / 1000000;
    if (want > written + rate / 2)
      begin += (want - written - rate / 2) * 1000000 / rate, want = written + rate / 2;  // a pause is not made up for
    for (; written < want; written++) {
      write_page(ram + at_write * kWords, &versions[at_write]);
      at_write = (at_write + 104729) % pages;  // a stride prime to the count: every page in turn, neighbours far apart
    }
    for (uint64_t until = now_us() + 2000; now_us() < until;)
      for (int i = 0; i < 16; i++, checked++) {
        if (!page_is_right(ram + at_check * kWords, at_check, versions[at_check])) {
          if (bad++ < kBadShown)
            printf("GODWIT BAD page=%" PRIu64 " says=%" PRIu64 " version=%" PRIu64 " want=%" PRIu32 "\n", at_check,
                   ram[at_check * kWords + kNumber], ram[at_check * kWords + kVersion], versions[at_check]);
          fflush(stdout);
        }
        if (++at_check == pages) at_check = 0, sweeps++;
      }
    if (now - said >= 250000) {
      said = now;
      printf("GODWIT ms=%" PRIu64 " writes=%" PRIu64 " checked=%" PRIu64 " sweeps=%" PRIu64 " bad=%" PRIu64 "\n",
             now / 1000, written, checked, sweeps, bad + (disk ? atomic_load(&disk->bad) : 0));
      if (disk) printf("GODWIT DISK reads=%lu\n", atomic_load(&disk->reads));
      if (devices)
        printf("GODWIT DEVICES echoes=%lu random=%lu\n", atomic_load(&disk->echoes), atomic_load(&disk->random));
      fflush(stdout);
    }
  }
}
