//go:build linux

// Command spawner is the part of monroe up that forks workers, alone: the starts of
// workers are measured through it, as a fork may cost more the larger the process is
// that forks. It sends its daemon's end of the channel over descriptor 3, and ends when
// that descriptor does.
//
// It knows spawn's server. It must not know what is measured.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/sandbox/cgroup"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

func main() {
	worker := flag.String("worker", "", "the worker program")
	uid := flag.Uint("worker-uid", 65534, "whom workers run as")
	flag.Parse()
	if err := serve(*worker, uint32(*uid)); err != nil {
		fmt.Fprintln(os.Stderr, "spawner:", err)
		os.Exit(1)
	}
}

func serve(worker string, uid uint32) (err error) {
	const parent = 3
	c := spawn.ServerConfig{Program: worker, WorkerUID: uid}
	if c.Groups, err = cgroup.Open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Groups.Close()) }()
	s, err := spawn.NewServer(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	cmd := &exec.Cmd{}
	if err := s.Hand(cmd); err != nil {
		return err
	}
	end := cmd.ExtraFiles[0]
	err = unix.Sendmsg(parent, []byte{1}, unix.UnixRights(int(end.Fd())), nil, 0)
	if err := errors.Join(err, end.Close()); err != nil {
		return err
	}
	_, err = unix.Read(parent, make([]byte, 1))
	return err
}
