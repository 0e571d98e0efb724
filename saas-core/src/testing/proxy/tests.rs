use std::{
    io::{ErrorKind, Read, Write},
    time::Instant,
};

use super::*;

/// A server that sends back every byte, and the proxy in front of it.
fn echo_behind_proxy() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    proxy
}

fn client(proxy: &Proxy) -> TcpStream {
    let client = TcpStream::connect(proxy.address()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    client.set_nodelay(true).unwrap();
    client
}

fn exchange(client: &mut TcpStream, question: &[u8]) -> io::Result<()> {
    client.write_all(question)?;
    let mut answer = vec![0; question.len()];
    client.read_exact(&mut answer)?;
    assert_eq!(answer, question);
    Ok(())
}

#[test]
fn flights_bytes_and_connections_are_counted() {
    let proxy = echo_behind_proxy();
    let mut one = client(&proxy);
    exchange(&mut one, b"first").unwrap();
    exchange(&mut one, b"second").unwrap();
    let mut other = client(&proxy);
    exchange(&mut other, b"third").unwrap();
    assert_eq!((proxy.flights(), proxy.connections()), (3, 2));
    assert_eq!((proxy.client_bytes(), proxy.server_bytes()), (16, 16));
}

#[test]
fn each_direction_takes_the_delay_and_not_much_more_even_below_a_millisecond() {
    let proxy = echo_behind_proxy();
    let mut client = client(&proxy);
    exchange(&mut client, b"warm").unwrap();
    let delay = Duration::from_micros(250);
    proxy.delay(delay);
    let mut fastest = Duration::MAX;
    for _ in 0..50 {
        let start = Instant::now();
        exchange(&mut client, b"timed").unwrap();
        let took = start.elapsed();
        assert!(took >= 2 * delay, "{took:?}");
        fastest = fastest.min(took);
    }
    // A timer with a granularity of a millisecond would make the fastest of fifty at least two of them.
    assert!(fastest < Duration::from_millis(2), "{fastest:?}");
}

#[test]
fn a_reset_is_a_reset_and_a_close_is_an_end_of_stream() {
    let proxy = echo_behind_proxy();
    let mut reset = client(&proxy);
    exchange(&mut reset, b"x").unwrap();
    proxy.cut(Cut::Reset);
    assert_eq!(reset.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    let mut closed = client(&proxy);
    exchange(&mut closed, b"new connections are served").unwrap();
    proxy.cut(Cut::Close);
    assert_eq!(closed.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_cut_can_be_set_for_later() {
    let proxy = echo_behind_proxy();
    let mut client = client(&proxy);
    exchange(&mut client, b"x").unwrap();
    let (start, delay) = (Instant::now(), Duration::from_millis(20));
    proxy.cut_after(delay, Cut::Reset).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(start.elapsed() >= delay);
}

#[test]
fn an_answer_can_be_lost_after_the_question_arrived() {
    let proxy = echo_behind_proxy();
    let mut client = client(&proxy);
    exchange(&mut client, b"x").unwrap();
    proxy.cut_instead_of_answer(1);
    exchange(&mut client, b"the next one passes").unwrap();
    let asked = proxy.client_bytes();
    let error = exchange(&mut client, b"lost").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.client_bytes() - asked, 4);
    assert_eq!(proxy.flights(), 2);
    exchange(&mut self::client(&proxy), b"only one is lost").unwrap();
}

#[test]
fn silence_holds_answers_back_until_it_ends() {
    let proxy = echo_behind_proxy();
    let mut client = client(&proxy);
    exchange(&mut client, b"x").unwrap();
    proxy.stop_answering();
    client.write_all(b"held").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(matches!(client.read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    proxy.resume_answering();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut answer = [0; 4];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"held");
}

#[test]
fn a_silent_connection_can_still_be_cut() {
    let proxy = echo_behind_proxy();
    let mut client = client(&proxy);
    exchange(&mut client, b"x").unwrap();
    proxy.stop_answering();
    client.write_all(b"x").unwrap();
    proxy.cut(Cut::Reset);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn refused_connections_fail_at_once_and_open_ones_go_on() {
    let proxy = echo_behind_proxy();
    let mut open = client(&proxy);
    exchange(&mut open, b"x").unwrap();
    proxy.refuse_connections();
    assert!(exchange(&mut client(&proxy), b"refused").is_err());
    exchange(&mut open, b"still open").unwrap();
    proxy.accept_connections();
    exchange(&mut client(&proxy), b"back").unwrap();
}

#[test]
fn an_end_of_stream_passes_through_with_everything_before_it() {
    let proxy = echo_behind_proxy();
    proxy.delay(Duration::from_millis(1));
    let mut client = client(&proxy);
    let long = vec![7; 1_000_000];
    let mut writer = client.try_clone().unwrap();
    let sent = long.clone();
    let sending = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    sending.join().unwrap();
    assert_eq!(answer, long);
}

#[test]
fn dropping_the_proxy_frees_its_port_and_resets_its_connections() {
    let proxy = echo_behind_proxy();
    let address = proxy.address();
    let mut client = client(&proxy);
    exchange(&mut client, b"x").unwrap();
    drop(proxy);
    assert!(client.read(&mut [0]).is_err());
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
