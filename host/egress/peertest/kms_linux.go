package peertest

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"golang.org/x/sys/unix"
)

// A KMS is local-kms, which others wrote. It is not AWS: it has no IAM, and what it
// answers after a deletion is its own code.
type KMS struct {
	Endpoint string

	admin  *kms.Client
	t      *testing.T
	data   string
	server *exec.Cmd
}

// StartKMS runs the calling test again in a network of its own, with nothing but a loopback
// device, and starts local-kms there: it listens on every address and has no setting for
// one. ok is false in the run outside, which only waits.
func StartKMS(t *testing.T) (k *KMS, ok bool) {
	t.Helper()
	if os.Getenv("MONROE_LOCAL_KMS") == "" {
		t.Skip("MONROE_LOCAL_KMS is not set: install local-kms with .ci/peers.sh")
	}
	if os.Getenv(alone) == "" {
		again(t)
		return nil, false
	}
	up(t)
	k = &KMS{Endpoint: "http://127.0.0.1:8081", t: t, data: t.TempDir()}
	for name, v := range KMSCredentials {
		t.Setenv(name, v)
	}
	c, err := config.LoadDefaultConfig(t.Context(), config.WithRegion("eu-central-1"))
	if err != nil {
		t.Fatal(err)
	}
	k.admin = kms.NewFromConfig(c, func(o *kms.Options) { o.BaseEndpoint = aws.String(k.Endpoint) })
	k.Start()
	return k, true
}

const alone = "MONROE_TEST_ALONE"

func again(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), alone+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil && cmd.ProcessState == nil {
		t.Skip("no network namespaces here: ", err)
	}
	if err != nil {
		t.Error(err)
	}
}

// up switches the loopback device on.
func up(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // it was only asked
	r, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		t.Fatal(err)
	}
}

// KMSCredentials are what a client of it needs in its environment.
var KMSCredentials = map[string]string{"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}

// Start starts it again, with the keys that it had.
func (k *KMS) Start() {
	k.t.Helper()
	k.server = exec.CommandContext(k.t.Context(), os.Getenv("MONROE_LOCAL_KMS"))
	k.server.Env = append(os.Environ(), "PORT=8081", "KMS_REGION=eu-central-1", "KMS_ACCOUNT_ID=111122223333", "KMS_DATA_PATH="+k.data)
	if err := k.server.Start(); err != nil {
		k.t.Fatal(err)
	}
	server := k.server
	k.t.Cleanup(func() { _ = server.Wait() }) // the test's context has killed it, or Stop
	Await(k.t, k.Endpoint)
}

// Stop ends it.
func (k *KMS) Stop() {
	k.t.Helper()
	if err := k.server.Process.Kill(); err != nil {
		k.t.Fatal(err)
	}
	if exit := new(exec.ExitError); !errors.As(k.server.Wait(), &exit) {
		k.t.Fatal("local-kms ended by itself")
	}
}

// Key makes a key and returns its name.
func (k *KMS) Key() string {
	k.t.Helper()
	made, err := k.admin.CreateKey(k.t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		k.t.Fatal(err)
	}
	return *made.KeyMetadata.Arn
}

// Delete schedules a key's deletion: from now on it opens nothing.
func (k *KMS) Delete(arn string) {
	k.t.Helper()
	if _, err := k.admin.ScheduleKeyDeletion(k.t.Context(), &kms.ScheduleKeyDeletionInput{KeyId: &arn, PendingWindowInDays: aws.Int32(7)}); err != nil {
		k.t.Fatal(err)
	}
}
