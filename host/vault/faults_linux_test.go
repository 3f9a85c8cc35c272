package vault_test

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/getmonroe/monroe/host/store/faultfs"
	"github.com/getmonroe/monroe/host/vault"
)

func TestMain(m *testing.M) {
	faultfs.Main()
	os.Exit(m.Run())
}

// A start is cut off after it made the keyset and before the name was synced. The next one
// uses that keyset, and must not seal anything with what a power cut can take.
func TestRootAKeysetThatIsUsedLasts(t *testing.T) {
	disk := faultfs.Start(t)
	open := func(dir string) (mac []byte, err error) {
		k, err := vault.OpenKeyset(filepath.Join(dir, "keys"), "acme")
		if err != nil {
			return nil, err
		}
		return k.MAC("test", []byte("x"))
	}
	dir := disk.Mount()
	disk.Inject(faultfs.Rule{Op: faultfs.SyncDir, At: 1, Errno: syscall.EIO})
	if _, err := open(dir); err == nil {
		t.Fatal("it was made although its name could not be synced")
	}
	disk.Inject(faultfs.Rule{})
	before, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	disk.Cut()
	disk.Unmount()
	after, err := open(disk.Mount())
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("it is another one now: %v", err)
	}
}
