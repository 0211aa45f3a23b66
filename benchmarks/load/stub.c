/* A model server that only keeps time: answers the OpenAI API with tokens at known instants, and records each.
 *
 * POST /v1/completions, /v1/chat/completions (streaming or not), GET /v1/models, /health, /status (JSON),
 * /record (CSV, see RECORD_COLUMNS), POST /freeze?ms=2000[&at_request=500].
 * One thread, one epoll. Knows nothing of models: token k of a request is due ttft + k * gap after the request
 * has been received completely, by the kernel's stamp of its last segment (SO_TIMESTAMPNS). All stamps in the
 * record are nanoseconds on CLOCK_MONOTONIC, taken before the write they belong to.
 *
 * A freeze is a stalled engine: nothing is read, written or accepted, and no timer of the engine runs, while
 * requests go on arriving in the kernel. Afterwards everything goes on where it stood.
 *
 *   cc -O2 -o stub stub.c -lm
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_MS 1000000LL
#define NS_PER_S 1000000000LL
#define MOST_BODY_BYTES (8 << 20)
#define MOST_HEAD_BYTES 65536
#define MOST_SERVERS 4096
#define MOST_FREEZES 64
#define CLIENT_ID_BYTES 64
#define RECORD_COLUMNS                                                                                        \
    "seq,connection,turn,kernel_first_ns,kernel_ns,received_ns,due_ns,head_ns,first_ns,last_ns,end_ns,"       \
    "tokens,tokens_asked,prompt_tokens,body_bytes,body_fnv1a,worst_late_ns,complete,client_id\n"

typedef int64_t ns_t;

/* One request. 0 in a stamp: it did not happen (an empty field in the CSV). */
struct record {
    uint64_t seq, connection, turn, body_fnv1a;
    ns_t kernel_first, kernel, received, due, head, first, last, end, worst_late;
    int64_t tokens, tokens_asked, prompt_tokens, body_bytes;
    bool complete;
    char client_id[CLIENT_ID_BYTES];
};

struct connection {
    int fd;
    bool busy, chat, stream, usage, closes, dead, wants_out;
    uint64_t number, turns;
    char *in;
    size_t in_length, in_capacity;
    char *out; /* what the socket would not take yet */
    size_t out_length, out_capacity;
    ns_t kernel_first, kernel; /* of the request that is coming in */
    size_t record;             /* index of the request that is answered */
    ns_t anchor, ttft, gap;    /* anchor: engine time from which its tokens are counted */
    struct connection *next_dead;
};

struct timer {
    ns_t due; /* engine time */
    struct connection *connection;
};

static struct {
    int port, pin, realtime, servers;
    double ttft_ms, gap_ms, noise, max_seconds;
    bool always_usage;
    const char *record_path;
    uint64_t seed;
} options = {.pin = -1, .ttft_ms = 20, .gap_ms = 5, .max_seconds = 600, .seed = 1};

static struct record *records;
static size_t record_count, record_capacity;
static struct timer *timers;
static size_t timer_count, timer_capacity;
static struct connection *dead_connections;
static uint64_t connection_count;
static long in_flight, without_kernel_stamp, refused;
static ns_t frozen; /* total so far: engine time = monotonic - frozen */
static ns_t thawed; /* engine time of the last thaw: nothing that arrived during the freeze counts from before */
static struct {
    ns_t from, to;
} freezes[MOST_FREEZES];
static int freeze_count;
static ns_t freeze_asked; /* for so long, once freeze_at_request requests have come */
static uint64_t freeze_at_request; /* 0: none is awaited */
static bool freeze_now;
static ns_t server_free[MOST_SERVERS];
static int epoll_fd, listen_fd;
static volatile sig_atomic_t over;
static long created_s;

static ns_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static ns_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static void fail(const char *what) {
    fprintf(stderr, "stub: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *grown(void *memory, size_t *capacity, size_t needed, size_t size) {
    if (needed <= *capacity) return memory;
    while (*capacity < needed) *capacity = *capacity ? *capacity * 2 : 1024;
    memory = realloc(memory, *capacity * size);
    if (!memory) fail("out of memory");
    return memory;
}

/* ---- random numbers: splitmix64, so that the same seed gives the same noise everywhere ---- */

static uint64_t random_state;

static double uniform(void) {
    uint64_t z = (random_state += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53 + 0x1p-54;
}

/* A factor with mean 1. */
static double noise(void) {
    double sigma = options.noise;
    if (sigma == 0) return 1;
    double normal = sqrt(-2 * log(uniform())) * cos(2 * M_PI * uniform());
    return exp(sigma * normal - sigma * sigma / 2);
}

/* ---- timers: a binary heap on engine time ---- */

static void timer_add(ns_t due, struct connection *connection) {
    timers = grown(timers, &timer_capacity, timer_count + 1, sizeof *timers);
    size_t i = timer_count++;
    for (; i && timers[(i - 1) / 2].due > due; i = (i - 1) / 2) timers[i] = timers[(i - 1) / 2];
    timers[i] = (struct timer){due, connection};
}

static struct timer timer_pop(void) {
    struct timer top = timers[0], last = timers[--timer_count];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < timer_count) {
        if (child + 1 < timer_count && timers[child + 1].due < timers[child].due) child++;
        if (timers[child].due >= last.due) break;
        timers[i] = timers[child];
        i = child;
    }
    timers[i] = last;
    return top;
}

/* ---- connections ---- */

static void watch(struct connection *c, bool out) {
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event)) fail("epoll_ctl");
    c->wants_out = out;
}

static void bury(struct connection *c) {
    c->next_dead = dead_connections;
    dead_connections = c;
}

/* Its timer may still be in the heap, and an event of this round may name it: freed once neither is so. */
static void disconnect(struct connection *c) {
    if (c->dead) return;
    c->dead = true;
    close(c->fd);
    if (c->busy)
        in_flight--;
    else
        bury(c);
}

static void free_dead(void) {
    while (dead_connections) {
        struct connection *c = dead_connections;
        dead_connections = c->next_dead;
        free(c->in);
        free(c->out);
        free(c);
    }
}

static void close_if_asked(struct connection *c) {
    if (!c->dead && c->closes && !c->busy && !c->out_length) disconnect(c);
}

static void flush_out(struct connection *c) {
    size_t sent = 0;
    while (sent < c->out_length) {
        ssize_t n = send(c->fd, c->out + sent, c->out_length - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) {
            disconnect(c);
            return;
        }
        sent += (size_t)n;
    }
    memmove(c->out, c->out + sent, c->out_length - sent);
    c->out_length -= sent;
    if (c->wants_out != (c->out_length > 0)) watch(c, c->out_length > 0);
    close_if_asked(c);
}

static void write_out(struct connection *c, const char *data, size_t length) {
    ssize_t n = 0;
    if (!c->out_length) {
        n = send(c->fd, data, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n == (ssize_t)length) return;
        if (n < 0 && errno != EAGAIN) {
            disconnect(c);
            return;
        }
        if (n < 0) n = 0;
    }
    size_t left = length - (size_t)n;
    c->out = grown(c->out, &c->out_capacity, c->out_length + left, 1);
    memcpy(c->out + c->out_length, data + n, left);
    c->out_length += left;
    if (!c->wants_out) watch(c, true);
}

/* ---- HTTP answers ---- */

static const char *date_line(void) {
    static char line[64];
    static time_t made;
    time_t now = time(NULL);
    if (now != made) {
        struct tm parts;
        strftime(line, sizeof line, "date: %a, %d %b %Y %H:%M:%S GMT\r\nserver: stub\r\n", gmtime_r(&now, &parts));
        made = now;
    }
    return line;
}

static void answer(struct connection *c, const char *status, const char *type, const char *body, size_t length) {
    char head[512];
    int n = snprintf(head, sizeof head, "HTTP/1.1 %s\r\n%scontent-length: %zu\r\ncontent-type: %s\r\n%s\r\n", status,
                     date_line(), length, type, c->closes ? "connection: close\r\n" : "");
    char *whole = malloc((size_t)n + length);
    if (!whole) fail("out of memory");
    memcpy(whole, head, (size_t)n);
    memcpy(whole + n, body, length);
    write_out(c, whole, (size_t)n + length);
    free(whole);
}

static void answer_json(struct connection *c, const char *status, const char *format, ...) {
    char body[8192];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(body, sizeof body, format, arguments);
    va_end(arguments);
    answer(c, status, "application/json", body, (size_t)n);
}

/* ---- tokens ---- */

static int usage_json(char *to, size_t size, const struct record *r) {
    return snprintf(to, size, "{\"prompt_tokens\":%ld,\"completion_tokens\":%ld,\"total_tokens\":%ld}",
                    (long)r->prompt_tokens, (long)r->tokens, (long)(r->prompt_tokens + r->tokens));
}

/* One event of the stream, in one chunk of the chunked coding. */
static size_t chunk(char *to, const char *event, int length) {
    size_t n = (size_t)sprintf(to, "%x\r\n", length);
    memcpy(to + n, event, (size_t)length);
    memcpy(to + n + length, "\r\n", 2);
    return n + (size_t)length + 2;
}

static int event_start(char *to, size_t size, const struct connection *c, const struct record *r) {
    return snprintf(to, size, "data: {\"id\":\"%s-%lu\",\"object\":\"%s\",\"created\":%ld,\"model\":\"stub\",\"choices\":[",
                    c->chat ? "chatcmpl" : "cmpl", (unsigned long)r->seq,
                    c->chat ? "chat.completion.chunk" : "text_completion", created_s);
}

static void write_token(struct connection *c, struct record *r, bool is_last) {
    char event[512], wire[640];
    int n = event_start(event, sizeof event, c, r);
    const char *finish = is_last ? "\"length\"" : "null";
    int word = (int)(r->tokens * 37 % 1000);
    if (c->chat)
        n += snprintf(event + n, sizeof event - (size_t)n,
                      "{\"index\":0,\"delta\":{%s\"content\":\" w%d\"},\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
                      r->tokens ? "" : "\"role\":\"assistant\",", word, finish);
    else
        n += snprintf(event + n, sizeof event - (size_t)n,
                      "{\"index\":0,\"text\":\" w%d\",\"logprobs\":null,\"finish_reason\":%s}]}\n\n", word, finish);
    size_t length = chunk(wire, event, n);
    r->last = now_ns();
    if (!r->tokens) r->first = r->last;
    r->tokens++;
    write_out(c, wire, length);
}

static void write_stream_end(struct connection *c, struct record *r) {
    static const char done[] = "data: [DONE]\n\n";
    char event[512], wire[1024];
    size_t length = 0;
    if (c->usage) {
        int n = event_start(event, sizeof event, c, r);
        n += snprintf(event + n, sizeof event - (size_t)n, "],\"usage\":");
        n += usage_json(event + n, sizeof event - (size_t)n, r);
        n += snprintf(event + n, sizeof event - (size_t)n, "}\n\n");
        length = chunk(wire, event, n);
    }
    length += chunk(wire + length, done, sizeof done - 1);
    memcpy(wire + length, "0\r\n\r\n", 5);
    r->end = now_ns();
    write_out(c, wire, length + 5);
}

static void write_document(struct connection *c, struct record *r) {
    size_t size = 1024 + 8 * (size_t)r->tokens_asked;
    char *body = malloc(size), usage[128];
    if (!body) fail("out of memory");
    int n = snprintf(body, size, "{\"id\":\"%s-%lu\",\"object\":\"%s\",\"created\":%ld,\"model\":\"stub\",\"choices\":[{\"index\":0,%s\"",
                     c->chat ? "chatcmpl" : "cmpl", (unsigned long)r->seq,
                     c->chat ? "chat.completion" : "text_completion", created_s,
                     c->chat ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"text\":");
    for (; r->tokens < r->tokens_asked; r->tokens++)
        n += snprintf(body + n, size - (size_t)n, " w%d", (int)(r->tokens * 37 % 1000));
    usage_json(usage, sizeof usage, r);
    n += snprintf(body + n, size - (size_t)n, "\"%s,\"logprobs\":null,\"finish_reason\":\"length\"}],\"usage\":%s}",
                  c->chat ? "}" : "", usage);
    r->first = r->last = r->end = now_ns();
    answer(c, "200 OK", "application/json", body, (size_t)n);
    free(body);
}

static void read_requests(struct connection *c);

static void serve_due(struct connection *c, ns_t due) {
    struct record *r = &records[c->record];
    ns_t late = now_ns() - frozen - due;
    bool is_last = !c->stream || r->tokens + 1 == r->tokens_asked;
    if (!c->dead) {
        if (late > r->worst_late) r->worst_late = late;
        if (c->stream) write_token(c, r, is_last);
        if (!is_last) timer_add(c->anchor + c->ttft + r->tokens * c->gap, c);
        if (!is_last) return;
    }
    if (c->dead) { /* the client left; this timer was the last that knew of it */
        bury(c);
        return;
    }
    c->busy = false;
    in_flight--;
    if (c->stream)
        write_stream_end(c, r);
    else
        write_document(c, r);
    r->complete = !c->dead;
    close_if_asked(c);
    if (!c->dead) read_requests(c);
}

/* ---- requests ---- */

/* Behind the colon of a key of the JSON body. Inside a string a quote is escaped, so nothing else matches. */
static const char *value_of(const char *body, size_t length, const char *key) {
    const char *at = memmem(body, length, key, strlen(key));
    if (!at) return NULL;
    const char *end = body + length;
    for (at += strlen(key); at < end && strchr(" \t\r\n:", *at); at++) {}
    return at < end ? at : NULL;
}

static bool is_true(const char *value, const char *end) { return value && end - value >= 4 && !memcmp(value, "true", 4); }

static int64_t number_or(const char *value, int64_t otherwise) {
    return value && *value >= '0' && *value <= '9' ? strtoll(value, NULL, 10) : otherwise;
}

/* Words of the prompt, as whitespace divides them; numbers, where it comes as token ids. */
static int64_t prompt_tokens(const char *body, size_t length, bool chat) {
    const char *at = value_of(body, length, chat ? "\"content\"" : "\"prompt\""), *end = body + length;
    if (!at) return 0;
    int64_t words = 0;
    if (*at == '[' && !chat) {
        for (words = 1; at < end && *at != ']'; at++) words += *at == ',';
        return words;
    }
    if (*at == '[' && !(at = value_of(at, (size_t)(end - at), "\"text\":"))) return 0; /* parts of a message */
    bool in_word = false;
    for (at++; at < end && *at != '"'; at++) {
        bool is_space = *at == ' ' || (*at == '\\' && at + 1 < end && strchr("nrt", at[1]));
        if (*at == '\\') at++;
        words += !is_space && !in_word;
        in_word = !is_space;
    }
    return words;
}

static uint64_t fnv1a(const char *data, size_t length) {
    uint64_t hash = 0xCBF29CE484222325ULL;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)data[i]) * 0x100000001B3ULL;
    return hash;
}

/* When a server is free; without --servers, at once. */
static ns_t service_start(ns_t arrival, ns_t service) {
    if (!options.servers) return arrival;
    int soonest = 0;
    for (int i = 1; i < options.servers; i++)
        if (server_free[i] < server_free[soonest]) soonest = i;
    ns_t start = arrival > server_free[soonest] ? arrival : server_free[soonest];
    server_free[soonest] = start + service;
    return start;
}

static void begin(struct connection *c, bool chat, const char *body, size_t length, const char *client_id) {
    records = grown(records, &record_capacity, record_count + 1, sizeof *records);
    struct record *r = &records[record_count];
    memset(r, 0, sizeof *r);
    c->record = record_count++;
    c->chat = chat;
    c->stream = is_true(value_of(body, length, "\"stream\""), body + length);
    c->usage = options.always_usage || is_true(value_of(body, length, "\"include_usage\""), body + length);
    r->seq = record_count - 1;
    r->connection = c->number;
    r->turn = c->turns++;
    r->received = now_ns();
    r->kernel_first = c->kernel_first;
    r->kernel = c->kernel;
    r->body_bytes = (int64_t)length;
    r->body_fnv1a = fnv1a(body, length);
    r->prompt_tokens = prompt_tokens(body, length, chat);
    const char *asked = value_of(body, length, "\"max_completion_tokens\"");
    r->tokens_asked = number_or(asked ? asked : value_of(body, length, "\"max_tokens\""), 16);
    if (r->tokens_asked < 1) r->tokens_asked = 1;
    memcpy(r->client_id, client_id, CLIENT_ID_BYTES);
    without_kernel_stamp += !r->kernel;
    c->busy = true;
    in_flight++;
    c->ttft = (ns_t)(options.ttft_ms * NS_PER_MS * noise());
    c->gap = (ns_t)(options.gap_ms * NS_PER_MS * noise());
    ns_t arrival = (r->kernel ? r->kernel : r->received) - frozen;
    ns_t service = c->ttft + (r->tokens_asked - 1) * c->gap;
    c->anchor = service_start(arrival > thawed ? arrival : thawed, service);
    ns_t due = c->anchor + (c->stream ? c->ttft : service);
    r->due = due + frozen;
    if (c->stream) { /* as uvicorn does: the head at once, the tokens when there are any */
        char head[256];
        int n = snprintf(head, sizeof head,
                         "HTTP/1.1 200 OK\r\n%scontent-type: text/event-stream; charset=utf-8\r\n%stransfer-encoding: "
                         "chunked\r\n\r\n",
                         date_line(), c->closes ? "connection: close\r\n" : "");
        r->head = now_ns();
        write_out(c, head, (size_t)n);
    }
    timer_add(due, c);
    if (freeze_at_request && --freeze_at_request == 0) freeze_now = true;
}

static void answer_status(struct connection *c) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    char list[MOST_FREEZES * 48] = "";
    int n = 0;
    for (int i = 0; i < freeze_count; i++)
        n += snprintf(list + n, sizeof list - (size_t)n, "%s[%ld,%ld]", i ? "," : "", (long)freezes[i].from,
                      (long)freezes[i].to);
    answer_json(c, "200 OK",
                "{\"requests\":%zu,\"in_flight\":%ld,\"connections\":%lu,\"without_kernel_stamp\":%ld,\"refused\":%ld,"
                "\"cpu_s\":%.6f,\"monotonic_ns\":%ld,\"freezes\":[%s]}",
                record_count, in_flight, (unsigned long)connection_count, without_kernel_stamp, refused,
                (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                    (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6,
                (long)now_ns(), list);
}

static void write_stamp(FILE *to, ns_t stamp) {
    if (stamp) fprintf(to, "%ld", (long)stamp);
    putc(',', to);
}

static void write_record(FILE *to) {
    fputs(RECORD_COLUMNS, to);
    for (size_t i = 0; i < record_count; i++) {
        const struct record *r = &records[i];
        fprintf(to, "%lu,%lu,%lu,", (unsigned long)r->seq, (unsigned long)r->connection, (unsigned long)r->turn);
        const ns_t stamps[] = {r->kernel_first, r->kernel, r->received, r->due, r->head, r->first, r->last, r->end};
        for (size_t k = 0; k < sizeof stamps / sizeof *stamps; k++) write_stamp(to, stamps[k]);
        fprintf(to, "%ld,%ld,%ld,%ld,%016lx,%ld,%d,%s\n", (long)r->tokens, (long)r->tokens_asked,
                (long)r->prompt_tokens, (long)r->body_bytes, (unsigned long)r->body_fnv1a, (long)r->worst_late,
                r->complete, r->client_id);
    }
}

static void answer_record(struct connection *c) {
    char *text;
    size_t length;
    FILE *memory = open_memstream(&text, &length);
    if (!memory) fail("open_memstream");
    write_record(memory);
    fclose(memory);
    answer(c, "200 OK", "text/csv", text, length);
    free(text);
}

static void ask_freeze(struct connection *c, const char *path) {
    const char *ms = strstr(path, "ms="), *at = strstr(path, "at_request=");
    int64_t for_ms = number_or(ms ? ms + 3 : NULL, 0), at_request = number_or(at ? at + 11 : NULL, 0);
    if (for_ms < 1 || for_ms > 600000 || freeze_count == MOST_FREEZES) {
        answer_json(c, "400 Bad Request", "{\"error\":\"/freeze?ms=1..600000[&at_request=N], %d times at most\"}",
                    MOST_FREEZES);
        return;
    }
    answer_json(c, "200 OK", "{\"freeze_ms\":%ld,\"at_request\":%ld}", (long)for_ms, (long)at_request);
    freeze_asked = for_ms * NS_PER_MS;
    freeze_at_request = (uint64_t)at_request;
    freeze_now = !at_request;
}

static void freeze_if_asked(void) {
    if (!freeze_now) return;
    ns_t from = now_ns(), to = from + freeze_asked;
    struct timespec until = {to / NS_PER_S, to % NS_PER_S};
    while (!over && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {}
    to = now_ns();
    thawed = from - frozen;
    frozen += to - from;
    freezes[freeze_count].from = from;
    freezes[freeze_count++].to = to;
    freeze_now = false;
}

/* The value of a header; name in lower case, with its colon. */
static const char *header(const char *head, const char *name) {
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, strlen(name))) {
            const char *value = line + 2 + strlen(name);
            while (*value == ' ') value++;
            return value;
        }
    return NULL;
}

static void handle(struct connection *c, const char *head, const char *body, size_t length) {
    const char *space = strchr(head, ' ');
    const char *path = space ? space + 1 : "";
    const char *connection = header(head, "connection:");
    bool is_post = !strncmp(head, "POST ", 5), is_get = !strncmp(head, "GET ", 4) || !strncmp(head, "HEAD ", 5);
    c->closes = connection && !strncasecmp(connection, "close", 5);
    if (is_post && (!strncmp(path, "/v1/completions ", 16) || !strncmp(path, "/v1/chat/completions ", 21))) {
        char client_id[CLIENT_ID_BYTES] = "";
        const char *id = header(head, "x-request-id:");
        if (id)
            for (size_t i = 0; i < CLIENT_ID_BYTES - 1 && id[i] > ' ' && id[i] != ','; i++) client_id[i] = id[i];
        begin(c, path[4] == 'c' && path[5] == 'h', body, length, client_id);
    } else if (is_post && !strncmp(path, "/freeze", 7))
        ask_freeze(c, path);
    else if (is_get && !strncmp(path, "/v1/models", 10))
        answer_json(c, "200 OK",
                    "{\"object\":\"list\",\"data\":[{\"id\":\"stub\",\"object\":\"model\",\"created\":%ld,"
                    "\"owned_by\":\"stub\",\"root\":\"stub\",\"parent\":null,\"max_model_len\":32768}]}",
                    created_s);
    else if (is_get && (!strncmp(path, "/health ", 8) || !strncmp(path, "/ping ", 6)))
        answer_json(c, "200 OK", "{}");
    else if (is_get && !strncmp(path, "/version ", 9))
        answer_json(c, "200 OK", "{\"version\":\"0.0.0\"}");
    else if (is_get && !strncmp(path, "/status ", 8))
        answer_status(c);
    else if (is_get && !strncmp(path, "/record ", 8))
        answer_record(c);
    else {
        refused++;
        answer_json(c, "404 Not Found", "{\"error\":{\"message\":\"no such route\",\"type\":\"not_found\",\"code\":404}}");
    }
}

/* Every whole request in the buffer, one after another: the next waits for the answer to the last. */
static void read_requests(struct connection *c) {
    while (!c->busy && !c->dead && c->in_length) {
        char *end = memmem(c->in, c->in_length, "\r\n\r\n", 4);
        if (!end) {
            if (c->in_length > MOST_HEAD_BYTES) disconnect(c);
            return;
        }
        size_t head_length = (size_t)(end - c->in) + 4;
        end[2] = '\0'; /* the last header line keeps its end */
        const char *length_header = header(c->in, "content-length:");
        int64_t length = number_or(length_header, 0);
        if (length > MOST_BODY_BYTES || header(c->in, "transfer-encoding:")) {
            disconnect(c);
            return;
        }
        if (c->in_length < head_length + (size_t)length) {
            end[2] = '\r';
            return;
        }
        size_t whole = head_length + (size_t)length;
        char after = c->in[whole];
        c->in[whole] = '\0';
        handle(c, c->in, c->in + head_length, (size_t)length);
        c->in[whole] = after;
        close_if_asked(c);
        memmove(c->in, c->in + whole, c->in_length - whole);
        c->in_length -= whole;
        c->kernel_first = c->in_length ? c->kernel : 0;
    }
}

static void receive(struct connection *c) {
    c->in = grown(c->in, &c->in_capacity, c->in_length + 16384, 1);
    char control[CMSG_SPACE(sizeof(struct timespec))];
    struct iovec where = {c->in + c->in_length, c->in_capacity - c->in_length - 1};
    struct msghdr message = {.msg_iov = &where, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(c->fd, &message, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        disconnect(c);
        return;
    }
    c->kernel = 0;
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message); cmsg; cmsg = CMSG_NXTHDR(&message, cmsg))
        if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec stamp;
            memcpy(&stamp, CMSG_DATA(cmsg), sizeof stamp);
            c->kernel = stamp.tv_sec * NS_PER_S + stamp.tv_nsec + now_ns() - clock_ns(CLOCK_REALTIME);
        }
    if (!c->kernel_first) c->kernel_first = c->kernel;
    c->in_length += (size_t)n;
    read_requests(c);
}

static void accept_all(void) {
    int fd, on = 1;
    while ((fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
        struct connection *c = calloc(1, sizeof *c);
        if (!c) fail("out of memory");
        c->fd = fd;
        c->number = connection_count++;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
    }
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) fail("accept");
}

/* ---- the process ---- */

static void listen_on(int port) {
    int on = 1;
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listen_fd < 0) fail("socket");
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listen_fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on); /* accepted sockets inherit it */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listen_fd, (struct sockaddr *)&address, sizeof address)) fail("bind");
    if (listen(listen_fd, 65535)) fail("listen");
    socklen_t length = sizeof address;
    getsockname(listen_fd, (struct sockaddr *)&address, &length);
    options.port = ntohs(address.sin_port);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &event)) fail("epoll_ctl");
}

static void get_out_of_the_way_of_noise(void) {
    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    if (options.pin >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(options.pin, &set);
        if (sched_setaffinity(0, sizeof set, &set)) fail("--pin");
    }
    if (options.realtime) {
        struct sched_param priority = {.sched_priority = options.realtime};
        if (sched_setscheduler(0, SCHED_FIFO, &priority)) fail("--realtime");
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

static void on_signal(int number) {
    (void)number;
    over = 1;
}

static void serve(void) {
    ns_t deadline = now_ns() + (ns_t)(options.max_seconds * 1e9);
    struct epoll_event events[64];
    while (!over) {
        ns_t now = now_ns();
        if (now >= deadline) return;
        ns_t until = timer_count && timers[0].due + frozen < deadline ? timers[0].due + frozen : deadline;
        ns_t left = until > now ? until - now : 0;
        struct timespec timeout = {left / NS_PER_S, left % NS_PER_S};
        int n = epoll_pwait2(epoll_fd, events, 64, &timeout, NULL);
        if (n < 0 && errno != EINTR) fail("epoll_pwait2");
        while (timer_count && timers[0].due + frozen <= now_ns()) {
            struct timer due = timer_pop();
            serve_due(due.connection, due.due);
        }
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c)
                accept_all();
            else if (!c->dead) {
                if (events[i].events & EPOLLOUT) flush_out(c);
                if (!c->dead && events[i].events & ~(uint32_t)EPOLLOUT) receive(c);
            }
        }
        free_dead();
        freeze_if_asked();
    }
}

static double number_option(const char *name, double least, double most) {
    char *end;
    double value = strtod(optarg, &end);
    if (*end || end == optarg || value < least || value > most) {
        fprintf(stderr, "stub: --%s must be from %g to %g, got %s\n", name, least, most, optarg);
        exit(2);
    }
    return value;
}

static void read_options(int argc, char **argv) {
    static const struct option known[] = {
        {"port", 1, 0, 'p'},   {"ttft-ms", 1, 0, 't'}, {"gap-ms", 1, 0, 'g'},      {"noise", 1, 0, 'n'},
        {"servers", 1, 0, 's'}, {"seed", 1, 0, 'S'},    {"pin", 1, 0, 'c'},         {"realtime", 1, 0, 'r'},
        {"record", 1, 0, 'o'}, {"always-usage", 0, 0, 'u'}, {"max-seconds", 1, 0, 'm'}, {0, 0, 0, 0}};
    int option, index = 0;
    while ((option = getopt_long(argc, argv, "", known, &index)) != -1) {
        const char *name = known[index].name;
        switch (option) {
        case 'p': options.port = (int)number_option(name, 0, 65535); break;
        case 't': options.ttft_ms = number_option(name, 0, 3.6e6); break;
        case 'g': options.gap_ms = number_option(name, 0, 3.6e6); break;
        case 'n': options.noise = number_option(name, 0, 5); break;
        case 's': options.servers = (int)number_option(name, 0, MOST_SERVERS); break;
        case 'S': options.seed = (uint64_t)number_option(name, 0, 9e15); break;
        case 'c': options.pin = (int)number_option(name, 0, CPU_SETSIZE - 1); break;
        case 'r': options.realtime = (int)number_option(name, 0, 99); break;
        case 'm': options.max_seconds = number_option(name, 0.001, 1e6); break;
        case 'o': options.record_path = optarg; break;
        case 'u': options.always_usage = true; break;
        default:
            fprintf(stderr, "usage: stub [--port N] [--ttft-ms MS] [--gap-ms MS] [--noise SIGMA] [--servers K] [--seed N]\n"
                            "            [--pin CPU] [--realtime PRIORITY] [--record FILE] [--always-usage] [--max-seconds S]\n");
            exit(2);
        }
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    random_state = options.seed;
    created_s = time(NULL);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0) fail("epoll_create1");
    get_out_of_the_way_of_noise();
    listen_on(options.port);
    printf("{\"port\": %d, \"pid\": %d}\n", options.port, (int)getpid());
    fflush(stdout);
    serve();
    if (options.record_path) {
        FILE *file = fopen(options.record_path, "w");
        if (!file) fail(options.record_path);
        write_record(file);
        if (fclose(file)) fail(options.record_path);
    }
    return 0;
}
