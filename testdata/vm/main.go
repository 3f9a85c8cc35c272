//go:build linux

// The first process of a virtual machine that runs named tests: .ci/vm puts it, the
// tests and the programs that they start into the machine's only file system. It prints
// what they print and, as its last line, whether every named test ran and passed.
//
// It is also the machine's go command, which builds nothing: it copies what was built
// outside.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if filepath.Base(os.Args[0]) == "go" {
		if err := build(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	n, err := boot()
	if err != nil {
		fmt.Fprintf(os.Stdout, "\nvm: FAILED: %v\n", err)
	} else {
		fmt.Fprintf(os.Stdout, "\nvm: %d tests passed\n", n)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// build is go build -o PATH PACKAGE, for packages that were built outside.
func build(args []string) error {
	i := slices.Index(args, "-o")
	if args[0] != "build" || i < 0 || i+2 > len(args) {
		return fmt.Errorf("there is no compiler in this machine for %q", args)
	}
	from, err := os.Open(filepath.Join("/built", filepath.Base(args[len(args)-1])))
	if err != nil {
		return err
	}
	to, err := os.OpenFile(args[i+1], os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

func boot() (passed int, err error) {
	if err := furnish(); err != nil {
		return 0, err
	}
	list, err := os.Open("/tests")
	if err != nil {
		return 0, err
	}
	var failed []error
	for s := bufio.NewScanner(list); s.Scan(); {
		words := strings.Fields(s.Text())
		pkg, where, tests := words[0], words[1], words[2:]
		began := time.Now()
		if err := run(pkg, where, tests); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", pkg, err))
		}
		fmt.Fprintf(os.Stdout, "vm: %s took %v\n", pkg, time.Since(began).Round(time.Second))
		passed += len(tests)
	}
	if passed == 0 {
		failed = append(failed, errors.New("no tests"))
	}
	return passed, errors.Join(failed...)
}

// furnish makes the machine what tests take one to be. Its control groups are of version
// 2 alone, with every controller handed down, as systemd does.
func furnish() error {
	for _, m := range []struct{ kind, at, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"tmpfs", "/tmp", "mode=1777"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"bpf", "/sys/fs/bpf", ""},
	} {
		if err := errors.Join(os.MkdirAll(m.at, 0o755), unix.Mount(m.kind, m.at, m.kind, 0, m.options)); err != nil {
			return fmt.Errorf("%s: %w", m.at, err)
		}
	}
	for _, e := range []struct{ name, value string }{{"PATH", "/bin"}, {"HOME", "/tmp"}} {
		if err := os.Setenv(e.name, e.value); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory +pids +cpu"), 0); err != nil {
		return err
	}
	modules, _ := filepath.Glob("/modules/*")
	for _, name := range modules {
		f, err := os.Open(name)
		if err == nil {
			err = errors.Join(unix.FinitModule(int(f.Fd()), "", 0), f.Close())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	text, _ := os.ReadFile("/proc/version")
	fmt.Fprintf(os.Stdout, "vm: %s", text)
	return raise("lo")
}

// raise brings a network interface up.
func raise(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written to it
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return err
	}
	_, err = net.InterfaceByName(name)
	return err
}

// run runs tests of one package, in a place below a control group of their own as a unit
// has one, and sees that each passed.
func run(pkg, where string, tests []string) error {
	group := filepath.Join("/sys/fs/cgroup", filepath.Base(pkg), where)
	if err := os.MkdirAll(group, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(group)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join("/built", filepath.Base(pkg)+".test"), "-test.v", "-test.timeout=4m", "-test.run=^("+strings.Join(tests, "|")+")$")
	cmd.Dir = filepath.Join("/src", pkg)
	cmd.Env = append(os.Environ(), "MONROE_BIN=/built")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	var out bytes.Buffer
	cmd.Stdout = io.MultiWriter(os.Stdout, &out)
	cmd.Stderr = cmd.Stdout
	err = cmd.Run()
	for _, name := range tests {
		if !bytes.Contains(out.Bytes(), []byte("--- PASS: "+name+" (")) {
			err = errors.Join(err, fmt.Errorf("%s did not pass", name))
		}
	}
	if n := bytes.Count(out.Bytes(), []byte("--- SKIP: ")); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d skipped", n))
	}
	return errors.Join(err, dir.Close())
}
