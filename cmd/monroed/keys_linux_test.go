package main_test

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	main "github.com/getmonroe/monroe/cmd/monroed"
	"github.com/getmonroe/monroe/host/egress/peertest"
)

// TestNeedsLocalKMSForTheDaemon is an operator's way: a workspace whose keyset lies in
// clear text moves to a key of the service, rotates, is away from it, and moves to another
// key. What was sealed before opens after each step.
func TestNeedsLocalKMSForTheDaemon(t *testing.T) {
	t.Setenv("MONROE_BIN", main.Bin) // for the run within
	service, ok := peertest.StartKMS(t)
	if !ok {
		return
	}
	first, second := service.Key(), service.Key()
	d := digest(t)
	for name, v := range peertest.KMSCredentials {
		d.env = append(d.env, name+"="+v)
	}
	id := d.once()
	d.stop()
	opens := func() {
		t.Helper()
		d.up()
		if v := d.run(id); len(v.Log) == 0 || len(v.Result) == 0 {
			t.Errorf("what was sealed: %+v", v)
		}
		d.once()
		d.kill()
		d.up()
		if out, status := d.verify(); status != 0 {
			t.Errorf("status %d\n%s", status, out)
		}
		d.stop()
	}
	operator := string(read(t, filepath.Join(d.home, "operator.yaml")))
	named := func(key string) {
		write(t, filepath.Join(d.home, "operator.yaml"), operator+"keys: {kms: \""+key+"\", endpoint: \""+service.Endpoint+"\"}\n")
	}
	unable := func(says ...string) {
		t.Helper()
		d.launch()
		err := d.end()
		for _, s := range says {
			if err == nil || !strings.Contains(d.said.String(), s) {
				t.Errorf("%v: it does not tell of %q\n%s", err, s, d.said)
			}
		}
	}
	rewrap := func() {
		t.Helper()
		cmd := exec.Command(program("monroed"), "--home", d.home, "--workspace", "team", "--rewrap-keys")
		cmd.Env = d.env
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	keyset := filepath.Join(d.dir, "keyset.json")
	material := []byte("keyMaterial") // names the field beside a key in clear text
	if plain := read(t, keyset); !bytes.Contains(plain, material) {
		t.Errorf("a keyset in clear text: %s", plain)
	}

	named(first)
	unable("monroed --rewrap-keys")
	rewrap()
	if sealed := read(t, keyset); bytes.Contains(sealed, material) {
		t.Errorf("%s", sealed)
	}
	opens()

	d.up()
	if out, status := cli(t, "--home", d.home, "-w", "team", "keys", "rotate"); status != 0 || !strings.Contains(out, "sealing keys: 2") {
		t.Errorf("status %d\n%s", status, out)
	}
	d.stop()
	opens()

	service.Stop()
	unable("the key service does not open the keyset", first)
	service.Start()
	opens()

	named(second)
	unable("monroed --rewrap-keys")
	rewrap()
	service.Delete(first)
	opens()

	service.Delete(second)
	unable("the key service does not open the keyset", second)
}
