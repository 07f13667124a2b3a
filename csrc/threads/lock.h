// A lock for what takes moments, where the C++ library has no threads either.
#pragma once
#include <atomic>

#include "pool.h"

namespace npgpt {

class Lock {
  public:
    // Holds it for the length of a scope
    class Held {
      public:
        explicit Held(Lock& lock_) : lock(lock_) {
            while (lock.taken.test_and_set(std::memory_order_acquire)) sleep_briefly();
        }
        ~Held() { lock.taken.clear(std::memory_order_release); }
        Held(const Held&) = delete;
        Held& operator=(const Held&) = delete;

      private:
        Lock& lock;
    };

  private:
    std::atomic_flag taken = ATOMIC_FLAG_INIT;
};

}  // namespace npgpt
