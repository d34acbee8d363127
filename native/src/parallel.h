// Parts of some work, done by the calling thread and by threads of XLA's pool.
#pragma once
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "problem.h"
#include "xla/ffi/api/ffi.h"

namespace rdrop {

// The cores that this process may use.
inline Index cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const Index count = std::thread::hardware_concurrency();
  return count > 0 ? count : 1;
}

// Threads that work now, of all calls. A helper only joins if a core is free.
inline std::atomic<Index>& working() {
  static std::atomic<Index> count{0};
  return count;
}

class Workers {
 public:
  explicit Workers(xla::ffi::ThreadPool pool)
      : pool_(pool), most_(std::min(cores(), std::max<Index>(pool.num_threads(), 1))) {
    working().fetch_add(1);
  }
  ~Workers() { working().fetch_sub(1); }

  Index most() const { return most_; }

  // Calls function(part) for each part, and returns when all are done.
  void run(Index parts, std::function<void(Index)> function) {
    auto job = std::make_shared<Job>(parts, std::move(function));
    const Index free = most_ - working().load();
    const Index helpers = std::min(free, parts - 1);
    for (Index n = 0; n < helpers; ++n) {
      pool_.Schedule([job, most = most_] {
        if (working().fetch_add(1) < most) job->work();
        working().fetch_sub(1);
      });
    }
    job->work();
    job->wait();
  }

 private:
  // A helper may come late, when all is done, so that it holds the job as well.
  struct Job {
    Index parts;
    std::function<void(Index)> function;
    std::atomic<Index> next{0};
    Index done = 0;
    std::mutex mutex;
    std::condition_variable all_done;

    Job(Index parts, std::function<void(Index)> function)
        : parts(parts), function(std::move(function)) {}

    void work() {
      Index mine = 0;
      for (Index part; (part = next.fetch_add(1)) < parts; ++mine) function(part);
      if (mine == 0) return;
      std::lock_guard<std::mutex> lock(mutex);
      done += mine;
      if (done == parts) all_done.notify_all();
    }

    void wait() {
      std::unique_lock<std::mutex> lock(mutex);
      all_done.wait(lock, [this] { return done == parts; });
    }
  };

  xla::ffi::ThreadPool pool_;
  Index most_;
};

}  // namespace rdrop
