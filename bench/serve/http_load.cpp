// A load generator for one HTTP endpoint: keep-alive connections, each one request at a time, answers whole
// or as server-sent events. One thread and epoll, so that it takes little of the cores it shares with the
// server.
//
//   http_load PORT CONNECTIONS REQUESTS BODY      posts BODY to /v1/chat/completions on 127.0.0.1
//
// Prints a JSON object. Gaps are the times between the arrivals of events of one answer.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "http_load: %s\n", what.c_str());
    std::exit(1);
}

double ms(Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

/// Where one answer ends, and how many events it has brought.
class Answer {
  public:
    /// Takes bytes that arrived; true when the answer is complete. Bytes behind its end must not come.
    bool feed(std::string_view data) {
        buffer_ += data;
        if (!has_head_ && !read_head()) return false;
        count_events();
        if (is_chunked_) return buffer_.ends_with("\r\n0\r\n\r\n");
        return buffer_.size() >= length_;
    }
    int64_t num_events() const { return num_events_; }

  private:
    bool read_head() {
        const size_t end = buffer_.find("\r\n\r\n");
        if (end == std::string::npos) return false;
        const std::string head = buffer_.substr(0, end + 2);
        if (!head.starts_with("HTTP/1.1 200")) fail("the server answered " + head.substr(0, head.find('\r')));
        is_chunked_ = head.find("chunked") != std::string::npos;
        const size_t at = head.find("Content-Length: ");
        if (!is_chunked_ && at == std::string::npos) fail("an answer without a length");
        // Without chunks the head is dropped; with them its last line end is kept for the first chunk's.
        if (!is_chunked_) length_ = std::strtoull(head.c_str() + at + 16, nullptr, 10);
        buffer_.erase(0, is_chunked_ ? end + 2 : end + 4);
        has_head_ = true;
        return true;
    }

    void count_events() {
        if (!is_chunked_) return;
        constexpr std::string_view kEvent = "data: {";
        size_t at = 0;
        while ((at = buffer_.find(kEvent, at)) != std::string::npos) {
            ++num_events_;
            at += kEvent.size();
            counted_ = at;
        }
        // What is kept may hold the beginning of an event or of the answer's end.
        const size_t keep = std::min<size_t>(buffer_.size() - counted_, 8);
        buffer_.erase(0, buffer_.size() - keep);
        counted_ = 0;
    }

    std::string buffer_;
    bool has_head_ = false, is_chunked_ = false;
    size_t length_ = 0, counted_ = 0;
    int64_t num_events_ = 0;
};

struct Connection {
    int fd = -1;
    Answer answer;
    Time sent, last_event;
};

struct Totals {
    int64_t left = 0, answered = 0, events = 0;
    std::vector<double> first_ms, gaps_ms;
};

int connect_to(uint16_t port) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
        fail(std::string("no connection: ") + std::strerror(errno));
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

void send_request(Connection& c, const std::string& request, Totals& totals) {
    --totals.left;
    c.answer = {};
    c.sent = Clock::now();
    size_t done = 0;
    while (done < request.size()) {
        const ssize_t n = write(c.fd, request.data() + done, request.size() - done);
        if (n <= 0) fail("the server closed a connection");
        done += static_cast<size_t>(n);
    }
}

void receive(Connection& c, const std::string& request, Totals& totals) {
    static char bytes[1 << 16];
    const ssize_t n = read(c.fd, bytes, sizeof bytes);
    if (n <= 0) fail("the server closed a connection");
    const Time now = Clock::now();
    const int64_t before = c.answer.num_events();
    const bool complete = c.answer.feed({bytes, static_cast<size_t>(n)});
    if (c.answer.num_events() > before) {
        if (before == 0)
            totals.first_ms.push_back(ms(now - c.sent));
        else
            totals.gaps_ms.push_back(ms(now - c.last_event));
        c.last_event = now;
    }
    if (!complete) return;
    ++totals.answered;
    totals.events += c.answer.num_events();
    if (totals.left > 0) send_request(c, request, totals);
}

double at(std::vector<double>& values, double share) {
    if (values.empty()) return 0;
    std::sort(values.begin(), values.end());
    return values[std::min(values.size() - 1,
                           static_cast<size_t>(share * static_cast<double>(values.size())))];
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 5) fail("usage: http_load PORT CONNECTIONS REQUESTS BODY");
    const auto port = static_cast<uint16_t>(std::atoi(argv[1]));
    const int num_connections = std::atoi(argv[2]);
    const int64_t num_requests = std::atoll(argv[3]);
    const std::string body = argv[4];
    if (num_connections < 1 || num_requests < num_connections)
        fail("expected at least one connection and a request for each");
    const std::string request =
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:" + std::to_string(port) +
        "\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
        body;

    const int epoll = epoll_create1(0);
    std::vector<Connection> connections(static_cast<size_t>(num_connections));
    for (Connection& c : connections) {
        c.fd = connect_to(port);
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.ptr = &c;
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, c.fd, &event) != 0) fail("epoll refused a connection");
    }
    Totals totals;
    totals.left = num_requests;
    const Time started = Clock::now();
    for (Connection& c : connections) send_request(c, request, totals);
    epoll_event ready[256];
    while (totals.answered < num_requests) {
        const int count = epoll_wait(epoll, ready, 256, 60'000);
        if (count <= 0) fail("no byte arrived for a minute");
        for (int i = 0; i < count; ++i)
            receive(*static_cast<Connection*>(ready[i].data.ptr), request, totals);
    }
    const double seconds = ms(Clock::now() - started) / 1000;
    std::printf(
        "{\"seconds\": %.3f, \"requests_per_s\": %.1f, \"events_per_s\": %.1f, \"ttft_p50_ms\": %.3f, "
        "\"gap_p50_ms\": %.3f, \"gap_p99_ms\": %.3f}\n",
        seconds, static_cast<double>(num_requests) / seconds, static_cast<double>(totals.events) / seconds,
        at(totals.first_ms, 0.5), at(totals.gaps_ms, 0.5), at(totals.gaps_ms, 0.99));
    return 0;
}
