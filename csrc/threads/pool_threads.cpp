#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "pool.h"
#include "system.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace npgpt {
namespace {

// ---- the floating-point mode

// Adam's second moments decay into denormals, which cost a hundred cycles each: flush them inside jobs.
struct FlushDenormals {
#if defined(__x86_64__)
    unsigned saved = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(saved | 0x8040); }  // FTZ and DAZ
    ~FlushDenormals() { _mm_setcsr(saved); }
#elif defined(__aarch64__)
    unsigned long long saved;
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(saved));
        asm volatile("msr fpcr, %0" ::"r"(saved | (1ull << 24)));
    }
    ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved)); }
#endif
};

// ---- the pool

class Pool {
  public:
    explicit Pool(int threads) { start(threads); }

    int size() const { return members.load(std::memory_order_relaxed); }  // asked from any thread

    void resize(int threads) {
        std::lock_guard<std::mutex> one_job(job_mutex);
        stop();
        start(threads);
    }

    void run(std::ptrdiff_t count, Item body, void* context, int workers_wanted) {
        FlushDenormals flush;
        std::unique_lock<std::mutex> one_job(job_mutex, std::defer_lock);
        if (count <= 1 || inside_job || workers_wanted < 2 || !one_job.try_lock() || workers.empty()) {
            for (std::ptrdiff_t i = 0; i < count; i++) body(context, i, 0);
            return;
        }
        leave_cpu_to_caller(workers);
        job_body = body;
        job_context = context;
        job_workers = workers_wanted < size() ? workers_wanted : size();
        for (int w = 0; w < job_workers; w++) {
            ranges[w].next.store(count * w / job_workers, std::memory_order_relaxed);
            ranges[w].end = count * (w + 1) / job_workers;
        }
        busy.store(int(workers.size()), std::memory_order_relaxed);
        announce();
        inside_job = true;
        take_items(0);
        inside_job = false;
        // Workers that are still in an item finish it soon: spin. If this lasts, other work on the machine has taken a
        // worker off its core: sleep, so that the system can run it here. (Yielding in a loop starves this thread for
        // seconds on a busy machine: each yield puts off its turn.)
        for (int i = 0; i < SPINS && busy.load() != 0; i++) pause_cpu();
        if (busy.load() == 0) return;
        std::unique_lock<std::mutex> lock(sleep_mutex);
        caller_sleeps = true;
        done.wait(lock, [&] { return busy.load() == 0; });
        caller_sleeps = false;
    }

  private:
    static constexpr int SPINS = 4000;  // about 40 microseconds: longer than Python needs from one op to the next

    void announce() {
        {
            std::lock_guard<std::mutex> lock(sleep_mutex);  // a worker about to sleep sees the new epoch
            epoch.fetch_add(1, std::memory_order_release);
        }
        if (sleepers.load(std::memory_order_acquire) > 0) wake.notify_all();
    }

    // A worker does its own share first and then helps the others with theirs. Where the items of one op after another
    // are the same tokens, each core finds in its cache what it wrote there itself.
    void take_items(int worker) {
        for (int w = 0; worker < job_workers && w < job_workers; w++) {
            Range& range = ranges[(worker + w) % job_workers];
            for (;;) {
                const std::ptrdiff_t i = range.next.fetch_add(1, std::memory_order_relaxed);
                if (i >= range.end) break;
                job_body(job_context, i, worker);
            }
        }
    }

    void work(int worker, unsigned seen) {
        FlushDenormals flush;
        inside_job = true;
        for (;;) {
            for (int i = 0; i < SPINS && epoch.load(std::memory_order_acquire) == seen; i++) pause_cpu();
            if (epoch.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(sleep_mutex);
                sleepers.fetch_add(1);
                wake.wait(lock, [&] { return epoch.load(std::memory_order_acquire) != seen; });
                sleepers.fetch_sub(1);
            }
            seen++;
            if (stopping) return;
            take_items(worker);
            if (busy.fetch_sub(1) == 1 && caller_sleeps) {
                std::lock_guard<std::mutex> lock(sleep_mutex);
                done.notify_one();
            }
        }
    }

    void start(int threads) {
        stopping = false;
        ranges = std::vector<Range>(threads);
        look_at_cpus(threads);
        const unsigned now = epoch.load();
        workers.reserve(size_t(threads));
#if defined(__cpp_exceptions)
        try {
            for (int i = 1; i < threads; i++) workers.emplace_back([this, i, now] { work(i, now); });
        } catch (const std::exception&) {
            threads = int(workers.size()) + 1;  // the system gives no more, or no memory for one
        }
#else
        for (int i = 1; i < threads; i++) workers.emplace_back([this, i, now] { work(i, now); });
#endif
        members = threads;
    }

    void stop() {
        stopping = true;
        announce();
        for (std::thread& worker : workers) worker.join();
        workers.clear();
    }

    static thread_local bool inside_job;

    struct alignas(128) Range {  // a worker's share of the items, on cache lines of its own
        std::atomic<std::ptrdiff_t> next{0};
        std::ptrdiff_t end = 0;
    };

    std::vector<std::thread> workers;
    std::atomic<int> members{1};  // they and the caller
    std::vector<Range> ranges;
    std::mutex job_mutex;  // one job at a time
    Item job_body = nullptr;
    void* job_context = nullptr;
    int job_workers = 0;  // those whose number is below it take part
    bool stopping = false;
    alignas(128) std::atomic<int> busy{0};
    alignas(128) std::atomic<unsigned> epoch{0};
    std::atomic<int> sleepers{0};
    std::mutex sleep_mutex;
    std::atomic<bool> caller_sleeps{false};
    std::condition_variable wake, done;
};

thread_local bool Pool::inside_job = false;

// The pool is never destroyed: at exit its workers sleep in a wait that nothing touches any more.
std::mutex create_mutex;
std::atomic<Pool*> pool{nullptr};
std::atomic<int> wanted_threads{0};

Pool& the_pool() {
    Pool* existing = pool.load(std::memory_order_acquire);
    if (existing) return *existing;
    std::lock_guard<std::mutex> lock(create_mutex);
    if (!pool.load()) {
        // A forked child has none of its parent's threads: forget the parent's pool, make another when needed.
        static const int registered = at_fork([] { create_mutex.lock(); }, [] { create_mutex.unlock(); },
                                              [] {
                                                  pool.store(nullptr);
                                                  new (&create_mutex) std::mutex();
                                              });
        (void)registered;
        if (!wanted_threads) wanted_threads = usable_cpus();
        pool.store(new Pool(wanted_threads), std::memory_order_release);
    }
    return *pool.load();
}

}  // namespace

int num_threads() { return the_pool().size(); }

void set_num_threads(int n) {
    Pool& p = the_pool();
    wanted_threads = n;
    if (n != p.size()) p.resize(n);
}

void run_parallel(std::ptrdiff_t count, Item body, void* context, int workers) {
    the_pool().run(count, body, context, workers);
}

}  // namespace npgpt
