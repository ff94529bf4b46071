// Asks the guest's web server for one of FILES files after the other, RATE a second, without end, and checks each byte:
// a file's content is a function of its number.
//
// usage: web_check RATE FILES
// The first line is "GODWIT FILLED pages=0", later ones, about four times a second:
//   GODWIT APP done=<n> bad=<n>     bad: wrong bytes, and requests that failed
//   GODWIT WEB longest_ms=<n> cached_kib=<n>
// longest: of the connections that ended since the last line, from connect to last byte.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { kOpenMax = 16, kFileBytes = 256 << 10, kHeadMax = 1024 };
static const uint64_t kMix = 0x9e3779b97f4a7c15ull;

struct Connection {
  int fd;
  uint64_t file, begin_us;
  size_t got;    // of the file
  size_t head;   // bytes of the answer's head so far
  char last[4];  // its last four bytes: a blank line ends it
  int head_done;
};

static struct Connection connections[kOpenMax];
static uint64_t done, bad, longest_us;

static uint64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void end(struct Connection* c, int failed) {
  const uint64_t took = now_us() - c->begin_us;
  if (failed || c->got != kFileBytes) {
    if (bad++ < 20) printf("GODWIT WEB file=%" PRIu64 " failed after %zu bytes\n", c->file, c->got);
  }
  if (took > longest_us) longest_us = took;
  done++;
  close(c->fd);
  c->fd = -1;
}

static void begin(uint64_t number, uint64_t files) {
  struct Connection* c = connections;
  while (c < connections + kOpenMax && c->fd >= 0) c++;
  if (c == connections + kOpenMax) return;  // the server is slow: this one is left out
  *c = (struct Connection){.fd = socket(AF_INET, SOCK_STREAM, 0), .file = number % files, .begin_us = now_us()};
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(80)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  char request[128];
  const int length = snprintf(request, sizeof request, "GET /%04" PRIu64 " HTTP/1.0\r\n\r\n", c->file);
  if (connect(c->fd, (struct sockaddr*)&address, sizeof address) != 0 ||
      write(c->fd, request, (size_t)length) != length)
    end(c, 1);
}

// Word i of file f is ((f << 32) + i + 1) * kMix. Reads come on any boundary, so the first and last word are left out
// where they are cut; what a torn or stale page would show is whole words.
static void check(struct Connection* c, const char* bytes, size_t count) {
  size_t at = (8 - c->got % 8) % 8;
  for (; at + 8 <= count; at += 8) {
    uint64_t word;
    memcpy(&word, bytes + at, 8);
    if (word != ((c->file << 32) + (c->got + at) / 8 + 1) * kMix) {
      if (bad++ < 20) printf("GODWIT BAD web file=%" PRIu64 " offset=%zu\n", c->file, c->got + at);
      break;
    }
  }
  c->got += count;
}

static void receive(struct Connection* c) {
  static char buffer[64 << 10];
  const ssize_t count = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count <= 0) return end(c, count < 0);
  ssize_t at = 0;
  while (!c->head_done && at < count) {
    memmove(c->last, c->last + 1, 3);
    c->last[3] = buffer[at++];
    if (++c->head > kHeadMax) return end(c, 1);
    c->head_done = memcmp(c->last, "\r\n\r\n", 4) == 0;
  }
  if (c->head_done) check(c, buffer + at, (size_t)(count - at));
}

static long cached_kib(void) {
  char line[128];
  long kib = 0;
  FILE* file = fopen("/proc/meminfo", "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "Cached: %ld", &kib) == 1) break;
  if (file) fclose(file);
  return kib;
}

int main(int argc, char** argv) {
  if (argc != 3) return fprintf(stderr, "usage: web_check RATE FILES\n"), 2;
  const uint64_t rate = strtoull(argv[1], 0, 10), files = strtoull(argv[2], 0, 10);
  for (int i = 0; i < kOpenMax; i++) connections[i].fd = -1;
  printf("GODWIT FILLED pages=0\n");
  fflush(stdout);
  uint64_t due = now_us(), begun = 0, said = 0;
  for (;;) {
    const uint64_t now = now_us();
    if (now >= due) {
      begin(begun++, files);
      due = now + 1000000 / rate;
    }
    struct pollfd polled[kOpenMax];
    int who[kOpenMax], count = 0;
    for (int i = 0; i < kOpenMax; i++)
      if (connections[i].fd >= 0)
        polled[count] = (struct pollfd){.fd = connections[i].fd, .events = POLLIN}, who[count++] = i;
    if (poll(polled, (nfds_t)count, 5) > 0)
      for (int i = 0; i < count; i++)
        if (polled[i].revents) receive(&connections[who[i]]);
    if (now - said >= 250000) {
      said = now;
      printf("GODWIT APP done=%" PRIu64 " bad=%" PRIu64 "\n", done, bad);
      printf("GODWIT WEB longest_ms=%" PRIu64 " cached_kib=%ld\n", longest_us / 1000, cached_kib());
      fflush(stdout);
      longest_us = 0;
    }
  }
}
