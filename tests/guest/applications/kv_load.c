// Sets and gets on memcached or Redis in this guest: KEYS keys (a multiple of 32) of 1 KiB, SETS sets among ten
// operations, and every answer checked. Low keys are asked for more often: key = KEYS * u^3 of a uniform u.
//
// usage: kv_load memcached|redis OPERATIONS_PER_S KEYS SETS [sweep]
// What a value holds is a function of key and version; the load knows each key's version. It waits for each answer.
// After all keys are set once: "GODWIT FILLED pages=0", then about four times a second
//   GODWIT APP done=<operations> bad=<wrong answers> sweeps=<times that all keys were got in order>
// sweep, of memcached: in the time that is left all keys are got in order, over and over, and checked like any.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { kKeysMax = 1 << 21, kValueBytes = 1024, kAtOnce = 32 };
static const uint64_t kMix = 0x9e3779b97f4a7c15ull;
static uint32_t versions[kKeysMax], keys;
static FILE *in, *out;
static int redis;
static uint64_t done, bad, sweeps;

static uint64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void connect_to(uint16_t port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  for (;;) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (connect(fd, (struct sockaddr*)&address, sizeof address) == 0) {
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      in = fdopen(fd, "r"), out = fdopen(dup(fd), "w");
      setvbuf(out, 0, _IOFBF, 2 * kAtOnce * kValueBytes);
      return;
    }
    close(fd);
    usleep(100000);
  }
}

// The eight lower hexadecimal digits, the lowest first, in a letter each.
static uint64_t letters(uint64_t word) {
  word &= 0xffffffff;
  word = (word | word << 16) & 0x0000ffff0000ffffull;
  word = (word | word << 8) & 0x00ff00ff00ff00ffull;
  word = (word | word << 4) & 0x0f0f0f0f0f0f0f0full;
  return word + 0x6161616161616161ull;  // 'a'
}

// Text, so that nothing in between takes it for an end.
static void make_value(char* value, uint32_t key, uint32_t version) {
  for (int i = 0; i < kValueBytes; i += 16) {
    const uint64_t word = ((((uint64_t)key << 32) | version) + (uint64_t)i) * kMix;
    const uint64_t text[2] = {letters(word), letters(word >> 32)};
    memcpy(value + i, text, 16);
  }
}

// memcached is silent on one of which nobody waits for the answer.
static void ask_set(uint32_t key, int silent) {
  char value[kValueBytes];
  make_value(value, key, versions[key]);
  if (redis)
    fprintf(out, "*3\r\n$3\r\nSET\r\n$8\r\nk%07u\r\n$%d\r\n", key, kValueBytes);
  else
    fprintf(out, "set k%07u 0 0 %d%s\r\n", key, kValueBytes, silent ? " noreply" : "");
  fwrite(value, 1, kValueBytes, out);
  fputs("\r\n", out);
}

static void say(void) {
  printf("GODWIT APP done=%" PRIu64 " bad=%" PRIu64 " sweeps=%" PRIu64 "\n", done, bad, sweeps);
  fflush(stdout);
}

static void take_line(char* line, int size) {
  if (fgets(line, size, in)) return;
  printf("GODWIT BAD the server has closed the connection\n");
  bad++;
  say();
  for (;;) pause();
}

static void wrong(const char* what, uint32_t key) {
  if (bad++ < 20) printf("GODWIT BAD %s of key %u\n", what, key);
}

static void take_set(uint32_t key) {
  char line[64];
  take_line(line, sizeof line);
  if (strcmp(line, redis ? "+OK\r\n" : "STORED\r\n") != 0) wrong("set", key);
}

static void take_value(uint32_t key) {
  char want[kValueBytes], value[kValueBytes + 2];
  make_value(want, key, versions[key]);
  if (fread(value, 1, sizeof value, in) != sizeof value || memcmp(value, want, kValueBytes) != 0) wrong("value", key);
}

// In memcached's answer a key is left out that it has not.
static void get_from_memcached(uint32_t first, uint32_t count) {
  char line[128];
  uint32_t key = first, got;
  fputs("get", out);
  for (uint32_t i = 0; i < count; i++) fprintf(out, " k%07u", first + i);
  fputs("\r\n", out);
  fflush(out);
  for (take_line(line, sizeof line); sscanf(line, "VALUE k%u", &got) == 1; take_line(line, sizeof line)) {
    for (; key < got && key < first + count; key++) wrong("get", key);
    take_value(got);
    key = got + 1;
  }
  for (; key < first + count; key++) wrong("get", key);
}

static void get_from_redis(uint32_t key) {
  char line[128];
  fprintf(out, "*2\r\n$3\r\nGET\r\n$8\r\nk%07u\r\n", key);
  fflush(out);
  take_line(line, sizeof line);
  if (strncmp(line, "$1024", 5) != 0) return wrong("get", key);
  take_value(key);
}

static void count_items(void) {
  char line[128];
  uint32_t items = 0;
  fputs("stats\r\n", out);
  fflush(out);
  do {
    take_line(line, sizeof line);
    sscanf(line, "STAT curr_items %u", &items);
  } while (strcmp(line, "END\r\n") != 0);
  if (items != keys) wrong("items, not the number", items);
}

// memcached answers once for all that go at once: an answer each takes it as long as storing it.
static void fill(void) {
  const uint32_t silent = redis ? 0 : kAtOnce - 1;
  for (uint32_t key = 0; key < keys; key += kAtOnce) {
    for (uint32_t i = 0; i < kAtOnce; i++) ask_set(key + i, i < silent);
    fflush(out);
    for (uint32_t i = silent; i < kAtOnce; i++) take_set(key + i);
  }
  if (!redis) count_items();
}

static void get_in_order(uint64_t until_us) {
  static uint32_t first;
  while (now_us() < until_us) {
    get_from_memcached(first, kAtOnce);
    if ((first += kAtOnce) == keys) first = 0, sweeps++;
  }
}

int main(int argc, char** argv) {
  if (argc != 5 && argc != 6)
    return fprintf(stderr, "usage: kv_load memcached|redis OPERATIONS_PER_S KEYS SETS [sweep]\n"), 2;
  const int sweep = argc == 6 && !redis && strcmp(argv[5], "sweep") == 0;
  redis = strcmp(argv[1], "redis") == 0;
  const uint64_t rate = strtoull(argv[2], 0, 10), sets = strtoull(argv[4], 0, 10);
  keys = (uint32_t)strtoul(argv[3], 0, 10);
  if (keys == 0 || keys > kKeysMax || keys % kAtOnce != 0) return fprintf(stderr, "kv_load: KEYS\n"), 2;
  connect_to(redis ? 6379 : 11211);
  fill();
  printf("GODWIT FILLED pages=0\n");
  fflush(stdout);
  uint64_t s = 88172645463325252ull, begin = now_us(), said = 0, begun = 0;
  for (;; usleep(2000)) {
    const uint64_t now = now_us();
    uint64_t due = (now - begin) * rate / 1000000;
    if (due > begun + rate)
      begin += (due - begun - rate) * 1000000 / rate, due = begun + rate;  // a pause is not made up for
    for (; begun < due; begun++, done++) {
      s ^= s << 13, s ^= s >> 7, s ^= s << 17;
      const double u = (double)(s >> 11) / 9007199254740992.0;
      const uint32_t key = (uint32_t)(keys * u * u * u);
      if (begun % 10 < sets) {
        versions[key]++;
        ask_set(key, 0);
        fflush(out);
        take_set(key);
      } else if (redis) {
        get_from_redis(key);
      } else {
        get_from_memcached(key, 1);
      }
      if (now_us() - said < 250000) continue;
      said = now_us();
      say();
    }
    if (sweep) get_in_order(now_us() + 20000);
  }
}
