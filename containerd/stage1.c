/* Stage 1: PID 1 of a container for the blink of an eye between systemd-nspawn and the distribution's init.
 *
 * Runs in nspawn's throw-away root as root of the container's user namespace. The tree that the host built is bound at
 * /mnt, its inner mounts locked. This adds what only the container's own namespaces can mount, makes the tree the root,
 * drops the throw-away root with every mark that nspawn left in it, gives up all powers that are not kept, and becomes init.
 * Code of the attacker's system never runs with CAP_SYS_ADMIN or without the filter.
 *
 * usage: stage1 KEPT_CAPABILITIES_HEX LAST_PID NAME=VALUE... -- INIT [ARG...]
 * Compiled by bootroot.py, static, and put at /stage1 with the filter at /filter.bpf. Errors go to standard error (the
 * container's nspawn.log) and end with code 99.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ERRORS = 3, FAILED = 99, FILTER_MOST = 4096 };

static void die(const char *what)
{
	dprintf(ERRORS, "stage1: %s: %s\n", what, strerror(errno));
	_exit(FAILED);
}

static void must(int result, const char *what)
{
	if (result < 0)
		die(what);
}

/* Keep one way to complain, which exec closes; no descriptor of the host's goes on. */
static void drop_descriptors(void)
{
	if (dup3(STDERR_FILENO, ERRORS, O_CLOEXEC) < 0)
		_exit(FAILED);
	must(syscall(SYS_close_range, ERRORS + 1, ~0U, 0), "close_range");
}

static void enter_tree(void)
{
	const unsigned long plain = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	must(mount("none", "/", NULL, MS_PRIVATE | MS_REC, NULL), "private mounts");
	/* The bind that nspawn made is locked where it is; a bind on itself has an unlocked top, as pivot_root wants. */
	must(mount("/mnt", "/mnt", NULL, MS_BIND | MS_REC, NULL), "bind");
	must(chdir("/mnt"), "chdir");
	must(mount("proc", "proc", "proc", plain | MS_RELATIME, NULL), "proc");
	must(mount("sysfs", "sys", "sysfs", plain | MS_RELATIME | MS_RDONLY, NULL), "sysfs");
	must(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC | MS_RELATIME, "newinstance,mode=620,ptmxmode=000"),
	     "devpts");
	must(mount("mqueue", "dev/mqueue", "mqueue", plain | MS_RELATIME, NULL), "mqueue");
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "leave the old root");
	must(chdir("/"), "chdir /");
}

/* Let process numbers go on from where a system's start would have left them. */
static void skip_pids(const char *last)
{
	int file = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);

	must(file, "ns_last_pid");
	must(write(file, last, strlen(last)), "ns_last_pid");
	close(file);
}

static struct sock_fprog read_filter(void)
{
	static struct sock_filter code[FILTER_MOST];
	int file = open("/filter.bpf", O_RDONLY | O_CLOEXEC);
	ssize_t size;

	must(file, "/filter.bpf");
	size = read(file, code, sizeof code);
	close(file);
	if (size <= 0 || size == sizeof code || size % sizeof *code) {
		errno = EINVAL;
		die("/filter.bpf");
	}
	return (struct sock_fprog){ .len = size / sizeof *code, .filter = code };
}

static void drop_powers(uint64_t keep, struct sock_fprog *filter)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct sets[2] = {
		{ .effective = keep, .permitted = keep },
		{ .effective = keep >> 32, .permitted = keep >> 32 },
	};

	must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient capabilities");
	for (int cap = 0; cap < 64; cap++)
		if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) && errno != EINVAL)
			die("bounding set");
	/* Loaded while CAP_SYS_ADMIN is still there: so it needs no NO_NEW_PRIVS, which would break su and sudo. */
	must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, filter), "seccomp");
	must(syscall(SYS_capset, &header, sets), "capset");
}

static void quiet_streams(void)
{
	int null = open("/dev/null", O_RDWR);

	must(null, "/dev/null");
	for (int stream = 0; stream < 3; stream++)
		must(dup2(null, stream), "dup2");
	if (null > 2)
		close(null);
}

int main(int count, char **given)
{
	int at = 3;
	char **environ_of_init = given + at;
	struct sock_fprog filter;

	drop_descriptors();
	while (at < count && strcmp(given[at], "--"))
		at++;
	if (at + 1 >= count) {
		errno = EINVAL;
		die("arguments");
	}
	given[at] = NULL; /* ends the environment */
	filter = read_filter();
	enter_tree();
	skip_pids(given[2]);
	umask(022);
	quiet_streams();
	drop_powers(strtoull(given[1], NULL, 16), &filter);
	execve(given[at + 1], given + at + 1, environ_of_init);
	die("init");
}
