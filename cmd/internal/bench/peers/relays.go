package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	domain   = "bench.example" // of the senders, which is what is signed for
	selector = "peers"
)

// site is where one instance lives.
type site struct {
	dir    string // empty, its own
	listen string // the relay's address
	sink   string // where it relays everything
	key    string // RSA-2048, PEM
}

func (s site) file(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

func (s site) sinkPort() string {
	_, port, _ := net.SplitHostPort(s.sink)
	return port
}

// instance is a running relay.
type instance struct {
	pids []int
	stop func(context.Context) error
}

// contender is a kind of relay.
type contender struct {
	name       string
	signs      bool
	acceptOnly bool // keeps what it accepts
	start      func(context.Context, site) (*instance, error)
}

func contenders(postroad string) []contender {
	list := []contender{
		{name: "postfix", start: func(ctx context.Context, s site) (*instance, error) { return startPostfix(ctx, s, "") }},
		{name: "postfix opendkim", signs: true, start: startPostfixOpenDKIM},
		{name: "postfix accepts", acceptOnly: true, start: func(ctx context.Context, s site) (*instance, error) {
			return startPostfix(ctx, s, "smtpd_end_of_data_restrictions = check_client_access static:HOLD\n")
		}},
	}
	if postroad == "" {
		return list
	}
	start := func(change string) func(context.Context, site) (*instance, error) {
		return func(ctx context.Context, s site) (*instance, error) { return startPostroad(ctx, s, postroad, change) }
	}
	return append(list,
		contender{name: "postroad unsigned", start: start("signer: {missing_key: pass}\n")},
		contender{name: "postroad signed", signs: true, start: start("")},
		contender{name: "postroad accepts", acceptOnly: true, start: start("roles: [queue, ingress]\n")},
	)
}

// startPostroad runs all roles in one process, or those that change names.
func startPostroad(ctx context.Context, s site, program, change string) (*instance, error) {
	dir := s.file("secrets", "dkim", domain)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if !strings.Contains(change, "missing_key: pass") {
		key, err := os.ReadFile(s.key)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, selector+".pem"), key, 0o600); err != nil {
			return nil, err
		}
	}
	config := fmt.Sprintf(`hostname: relay.bench.example
data_dir: %s
secrets: {dir: %s}
ingress:
  max_client_connections: 1000
  listeners: [{address: "%s", trusted_networks: [127.0.0.0/8]}]
delivery:
  site_connections: 50
  routes: [{domains: ["*"], via: "smtp:[127.0.0.1]:%s", tls: none, allow_private: true}]
%s`, s.file("data"), s.file("secrets"), s.listen, s.sinkPort(), change)
	if err := os.WriteFile(s.file("postroad.yaml"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	return startDaemon(s, program, "serve", "-c", s.file("postroad.yaml"))
}

// startPostfixOpenDKIM signs by a milter on a unix socket, which is Debian's default and the fastest: over TCP each
// message waits for delayed acknowledgements.
func startPostfixOpenDKIM(ctx context.Context, s site) (*instance, error) {
	milter := s.file("opendkim.sock")
	config := fmt.Sprintf(`Mode s
Socket local:%s
UMask 000
Domain %s
Selector %s
KeyFile %s
Canonicalization relaxed/relaxed
InternalHosts 127.0.0.0/8
RequireSafeKeys no
Syslog no
PidFile %s
`, milter, domain, selector, s.key, s.file("opendkim.pid"))
	if err := os.WriteFile(s.file("opendkim.conf"), []byte(config), 0o644); err != nil {
		return nil, err
	}
	signer, err := startDaemon(s, "opendkim", "-f", "-x", s.file("opendkim.conf"))
	if err != nil {
		return nil, err
	}
	if err := await(ctx, "unix", milter, startTimeout, func(net.Conn) error { return nil }); err != nil {
		return nil, errors.Join(err, signer.stop(ctx))
	}
	relay, err := startPostfix(ctx, s, "milter_default_action = tempfail\nmilter_protocol = 6\nsmtpd_milters = unix:"+milter+"\n")
	if err != nil {
		return nil, errors.Join(err, signer.stop(ctx))
	}
	return &instance{
		pids: append(relay.pids, signer.pids...),
		stop: func(ctx context.Context) error { return errors.Join(relay.stop(ctx), signer.stop(ctx)) },
	}, nil
}

// startPostfix runs a private instance. Where a default would hold it back, it is raised: processes, concurrency
// towards the one destination, and the delay that lets delivery catch up.
func startPostfix(ctx context.Context, s site, change string) (*instance, error) {
	main := fmt.Sprintf(`compatibility_level = 3.6
config_directory = %[1]s
queue_directory = %[2]s
data_directory = %[3]s
maillog_file = %[4]s/postfix.log
maillog_file_prefixes = %[4]s
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = relay.bench.example
mydestination =
mynetworks = 127.0.0.0/8
relayhost = [127.0.0.1]:%[5]s
alias_maps =
local_recipient_maps =
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_peername_lookup = no
smtp_host_lookup = native
default_process_limit = 200
initial_destination_concurrency = 50
default_destination_concurrency_limit = 50
smtpd_client_connection_count_limit = 0
in_flow_delay = 0
%[6]s`, s.file("conf"), s.file("spool"), s.file("data"), s.file("log"), s.sinkPort(), change)
	for _, dir := range []string{"conf", "spool", "data", "log"} {
		if err := os.MkdirAll(s.file(dir), 0o755); err != nil {
			return nil, err
		}
	}
	if err := giveTo("postfix", s.file("data")); err != nil {
		return nil, err
	}
	for name, content := range map[string]string{"main.cf": main, "master.cf": s.listen + masterServices} {
		if err := os.WriteFile(s.file("conf", name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	if out, err := exec.CommandContext(ctx, "postfix", "-c", s.file("conf"), "start").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("postfix start: %w\n%s%s", err, out, tail(s.file("log")))
	}
	text, err := os.ReadFile(s.file("spool", "pid", "master.pid"))
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("process id of master: %w", err)
	}
	return &instance{pids: []int{pid}, stop: func(ctx context.Context) error {
		out, err := exec.CommandContext(ctx, "postfix", "-c", s.file("conf"), "stop").CombinedOutput()
		if err != nil {
			return fmt.Errorf("postfix stop: %w\n%s", err, out)
		}
		return nil
	}}, nil
}

// masterServices is Debian's master.cf without chroot and without what a relay does not use.
const masterServices = ` inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`

// startDaemon runs a program in the foreground with its output in a file. It gets a session of its own, as Postfix's
// master has: Linux shares a busy machine between sessions (sched(7), autogroup), and a relay in the session of the
// load generator would get half of what the others get.
func startDaemon(s site, program string, args ...string) (*instance, error) {
	if err := os.MkdirAll(s.file("log"), 0o755); err != nil {
		return nil, err
	}
	out, err := os.Create(s.file("log", filepath.Base(program)+".log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		_ = out.Close()
		close(ended)
	}()
	return &instance{pids: []int{cmd.Process.Pid}, stop: func(ctx context.Context) error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s did not end: %w", program, ctx.Err()), cmd.Process.Kill())
		}
	}}, nil
}

func writeKey(path string) (string, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", fmt.Errorf("make key: %w", err)
	}
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	return path, os.WriteFile(path, pem.EncodeToMemory(block), 0o600)
}

func giveTo(name, path string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	return os.Chown(path, uid, -1)
}

// freeAddress is a loopback address that nobody listened on a moment ago.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func awaitBanner(ctx context.Context, address string, timeout time.Duration) error {
	return await(ctx, "tcp", address, timeout, func(c net.Conn) error {
		banner := make([]byte, 3)
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(banner); err != nil || string(banner) != "220" {
			return fmt.Errorf("answers %q: %w", banner, err)
		}
		_, err := c.Write([]byte("QUIT\r\n"))
		return err
	})
}

func await(ctx context.Context, network, address string, timeout time.Duration, ready func(net.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, address)
		if err == nil {
			err = errors.Join(ready(c), c.Close())
		}
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", address, err)
		}
	}
}

// tail gives the end of every log file, for an error.
func tail(dir string) string {
	const octets = 2000
	var out strings.Builder
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil {
			fmt.Fprintf(&out, "--- %s\n%s", filepath.Base(path), text[max(0, len(text)-octets):])
		}
		return nil
	})
	return out.String()
}
