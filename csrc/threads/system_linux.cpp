#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "pool.h"
#include "system.h"

namespace npgpt {
namespace {

// stdio, not streams: those alone would double the size of a program around libnpgpt.
int read_line(const std::string& path, char* line, int size) {
    std::FILE* file = std::fopen(path.c_str(), "re");
    if (!file) return 0;
    const bool read = std::fgets(line, size, file) != nullptr;
    std::fclose(file);
    return read;
}

double read_quota(const std::string& path) {  // cgroup v2 cpu.max: "max 100000" or "50000 100000"
    char line[64];
    double quota = 0, period = 0;
    if (!read_line(path, line, sizeof(line)) || std::sscanf(line, "%lf %lf", &quota, &period) != 2 || period <= 0)
        return INFINITY;
    return quota / period;
}

double read_quota_v1(const std::string& folder) {
    char quota_line[64], period_line[64];
    if (!read_line(folder + "/cpu.cfs_quota_us", quota_line, sizeof(quota_line)) ||
        !read_line(folder + "/cpu.cfs_period_us", period_line, sizeof(period_line)))
        return INFINITY;
    const double quota = std::atof(quota_line), period = std::atof(period_line);
    return quota <= 0 || period <= 0 ? INFINITY : quota / period;
}

double cgroup_quota() {
    // every ancestor's quota binds: walk from this process's group up to the mount point
    double quota = std::fmin(read_quota("/sys/fs/cgroup/cpu.max"), read_quota_v1("/sys/fs/cgroup/cpu"));
    std::FILE* groups = std::fopen("/proc/self/cgroup", "re");
    char buffer[4096];
    while (groups && std::fgets(buffer, sizeof(buffer), groups)) {  // "0::/path" or "4:cpu,cpuacct:/path"
        const std::string line(buffer, std::strcspn(buffer, "\n"));
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        std::string path = line.substr(second + 1);
        while (path.size() > 1) {
            if (controllers.empty()) quota = std::fmin(quota, read_quota("/sys/fs/cgroup" + path + "/cpu.max"));
            if (controllers.find("cpu") != std::string::npos)
                quota = std::fmin(quota, read_quota_v1("/sys/fs/cgroup/cpu" + path));
            path.resize(path.rfind('/'));
        }
    }
    if (groups) std::fclose(groups);
    return quota;
}

// Of the one pool, whose jobs come one at a time
cpu_set_t process_cpus;
bool enough_cpus = false;  // a CPU for each thread
int caller_cpu = -1;       // the one that the workers keep off

}  // namespace

int usable_cpus() {
    cpu_set_t set;
    int cpus = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : int(sysconf(_SC_NPROCESSORS_ONLN));
    const double quota = cgroup_quota();
    if (quota < cpus) cpus = int(std::ceil(quota));
    return cpus < 1 ? 1 : cpus;
}

void sleep_briefly() { std::this_thread::sleep_for(std::chrono::microseconds(50)); }

int at_fork(void (*before)(), void (*in_parent)(), void (*in_child)()) {
    return pthread_atfork(before, in_parent, in_child);
}

void look_at_cpus(int threads) {
    caller_cpu = -1;
    enough_cpus = sched_getaffinity(0, sizeof(process_cpus), &process_cpus) == 0 && CPU_COUNT(&process_cpus) >= threads;
}

void leave_cpu_to_caller(std::vector<std::thread>& workers) {
    const int cpu = sched_getcpu();
    if (cpu == caller_cpu || !enough_cpus) return;
    caller_cpu = cpu;
    cpu_set_t others = process_cpus;
    CPU_CLR(cpu, &others);
    for (std::thread& worker : workers) pthread_setaffinity_np(worker.native_handle(), sizeof(others), &others);
}

}  // namespace npgpt
