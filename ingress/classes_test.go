package ingress

import (
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	"postroad/ingress/account"
	"postroad/queue"
)

// TestS3_9_S3_10_LimitsOfClasses: hosts have 360 recipients an hour and people 100 in six hours, each for itself and however they are spread
// over messages; who is in a class without a bound has none, and an account that gets another class has that one's bound at the next login.
func TestS3_9_S3_10_LimitsOfClasses(t *testing.T) {
	host := Class{PerClient: queue.Limit{Count: 360, Window: time.Hour}}
	person := Class{PerClient: queue.Limit{Count: 100, Window: 6 * time.Hour}}
	rejected := person
	rejected.RejectOverLimit = true
	clients := fakeSource{}
	for name, class := range map[string]string{"web01": "host", "web02": "host", "luna": "exempt", "ann": "user", "bob": "strict"} {
		c := &account.Client{Name: name, Class: class}
		if _, err := c.SetPassword("correct horse", account.Generated, time.Now(), 0); err != nil {
			t.Fatal(err)
		}
		clients[name] = c
	}
	accounts, err := account.New(account.Options{Source: clients})
	if err != nil {
		t.Fatal(err)
	}
	o := testOptions(realQueue(t))
	o.Accounts = accounts
	o.Listeners[0].Auth, o.Listeners[0].AuthInClear = AuthRequired, true
	o.Policy = Policy{Classes: map[string]Class{"host": host, "user": person, "strict": rejected, "exempt": {}}}
	s := startServer(t, o)

	// send hands in a message to so many recipients.
	send := func(name string, recipients int, want string) {
		t.Helper()
		c := dial(t, s.Addrs()[0].String())
		c.hear("220")
		login := base64.StdEncoding.EncodeToString([]byte("\x00" + name + "\x00correct horse"))
		c.talk("EHLO client.test", "250", "AUTH PLAIN "+login, "235", "MAIL FROM:<a@from.test>", "250")
		for i := range recipients {
			c.talk(fmt.Sprintf("RCPT TO:<b%d@to.test>", i), "250")
		}
		c.talk("DATA", "354")
		c.say(fmt.Sprintf("From: a@from.test\r\nSubject: to %d\r\n\r\nhi\r\n.\r\n", recipients))
		c.hear(want)
		c.talk("QUIT", "221")
	}
	for _, name := range []string{"web01", "web02"} { // each for itself
		send(name, 300, "250 2.0.0 queued as ")
		send(name, 60, "250 2.0.0 queued as ")
		send(name, 1, "450 4.7.1 ")
	}
	for range 4 {
		send("ann", 25, "250 2.0.0 queued as ")
	}
	send("ann", 1, "450 4.7.1 ")
	send("bob", 101, "550 5.7.1 ")
	send("bob", 100, "250 2.0.0 queued as ")
	send("luna", 500, "250 2.0.0 queued as ")
	send("luna", 500, "250 2.0.0 queued as ")
	clients["ann"].Class = "exempt"
	send("ann", 200, "250 2.0.0 queued as ")
}
